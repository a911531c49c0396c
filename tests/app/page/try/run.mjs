// Run request.mts in each folder, in one process, and print what they answered, a NUL between them.
// node run.mjs FOLDER…

import { chdir } from "node:process";
import { pathToFileURL } from "node:url";

const outputs = [];
Response.prototype.json = Response.prototype.text; // its numbers keep their digits
for (const folder of process.argv.slice(2)) {
  let output = "";
  console.log = (...values) => (output += values.at(-1)); // after the status, or a piece of events
  chdir(folder);
  await import(pathToFileURL(`${folder}/request.mts`).href);
  outputs.push(output);
}
process.stdout.write(outputs.join("\0"));
