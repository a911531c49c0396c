// @ts-check
/** A request as a command or program that sends it. Pure. */

import { jsonError } from "./json_text.js";
import { isPlain, typeOfPart } from "./request.js";

/**
 * @typedef {import("./request.js").Plan} Plan
 * @typedef {{code: string, files: {name: string, content: Blob | string}[]}} Snippet
 *   `files`: what the code reads from the disk, and the page has.
 * @typedef {{url: string, key: boolean}} Where `url`: that of the page. `key`: it needs an API key.
 */

const LONG = 2000; // characters: what is longer comes from a file

/** @type {Record<string, (plan: Plan, where: Where) => Snippet>} */
export const SNIPPETS = { curl, Python: python, TypeScript: typescript };

const quoted = JSON.stringify;
const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** Collects the files that a snippet reads. */
class Files {
  /** @type {Snippet["files"]} */
  kept = [];

  /**
   * Return the path of what a part reads, or "": the code has its text.
   * @param {import("./request.js").Part} part
   */
  path({ name, file, text, json }) {
    if (!file && (text ?? json).length <= LONG && isPlain(text ?? json)) return "";
    const own = file?.name ?? `${name}.${json === undefined ? "txt" : "json"}`;
    const content = file ? file.blob : (text ?? json);
    if (content !== null && !this.kept.some((one) => one.name === own)) this.kept.push({ name: own, content });
    return /^[-<@]/.test(own) ? `./${own}` : own; // no option, and not standard input
  }
}

/** @type {(plan: Plan, where: Where) => Snippet} */
function curl({ path, headers, events, body, form }, { url, key }) {
  const files = new Files();
  const words = [events ? "curl -N" : "curl"];
  for (const [name, value] of Object.entries(headers)) words.push(`-H ${shell(`${name}: ${value}`)}`);
  if (key) words.push('-H "Authorization: Bearer $PENSTOCK_API_KEY"');
  if (body) {
    const file = files.path(body);
    words.push(file ? `--data-binary ${shell(`@${file}`)}` : `--data-raw ${shell(body.text ?? body.json)}`);
  }
  for (const part of form ?? []) {
    const file = files.path(part);
    const value = `"${(file || (part.text ?? part.json)).replace(/[\\"]/g, "\\$&")}"`;
    words.push(`-F ${shell(`${part.name}=${file && (part.file ? "@" : "<")}${value};type=${typeOfPart(part)}`)}`);
  }
  words.push(shell(new URL(path, url).href));
  return { code: words.join(" \\\n  "), files: files.kept };
}

/** @type {(plan: Plan, where: Where) => Snippet} */
function python({ path, headers, events, body, form }, { url, key }) {
  const files = new Files();
  const read = (part) => {
    const file = files.path(part);
    return file ? `Path(${quoted(file)}).read_bytes()` : quoted(part.text ?? part.json);
  };
  const { "Content-Type": type, ...others } = headers;
  const lines = [quoted(new URL(path, url).href)];
  const isLiteral = body?.json !== undefined && !files.path(body);
  if (isLiteral) lines.push(`json=${literal(body.json)}`);
  else if (body) lines.push(`content=${read(body)}${files.path(body) ? "" : ".encode()"}`);
  else {
    const parts = form.map((part) => {
      const name = part.file ? quoted(part.file.name) : "None";
      return `        (${quoted(part.name)}, (${name}, ${read(part)}, ${quoted(typeOfPart(part))})),\n`;
    });
    lines.push(`files=[\n${parts.join("")}    ]`);
  }
  const sent = Object.entries(isLiteral || !type ? others : headers).map(([name, value]) => `        ${quoted(name)}: ${quoted(value)},\n`);
  if (key) sent.push(`        "Authorization": f"Bearer {os.environ['PENSTOCK_API_KEY']}",\n`);
  if (sent.length) lines.push(`headers={\n${sent.join("")}    }`);
  lines.push(`timeout=${events ? "None" : "60"}`);
  const call = lines.map((line) => `    ${line},\n`).join("");
  const code = events
    ? `with httpx.stream(\n    "POST",\n${call}) as answer:\n    for line in answer.iter_lines():\n        print(line)\n`
    : `answer = httpx.post(\n${call})\nprint(answer.status_code, answer.json())\n`;
  const imports = `${key ? "import os\n" : ""}${call.includes("Path(") ? "from pathlib import Path\n" : ""}`;
  return { code: `${imports && `${imports}\n`}import httpx\n\n${code}`, files: files.kept };
}

/** @type {(plan: Plan, where: Where) => Snippet} */
function typescript({ path, headers, events, body, form }, { url, key }) {
  const files = new Files();
  const read = (part) => {
    const file = files.path(part);
    return file ? `await readFile(${quoted(file)})` : quoted(part.text ?? part.json);
  };
  const parts = (form ?? []).map((part) => {
    const blob = `new Blob([${read(part)}], { type: ${quoted(typeOfPart(part))} })`;
    return `form.append(${quoted(part.name)}, ${blob}${part.file ? `, ${quoted(part.file.name)}` : ""});\n`;
  });
  const isLiteral = body?.json !== undefined && !files.path(body) && isExact(body.json);
  const content = form ? "form" : isLiteral ? `JSON.stringify(${body.json})` : read(body);
  const sent = Object.entries(headers).map(([name, value]) => `    ${quoted(name)}: ${quoted(value)},\n`);
  if (key) sent.push("    Authorization: `Bearer ${process.env.PENSTOCK_API_KEY}`,\n");
  const code =
    `${form ? `const form = new FormData();\n${parts.join("")}\n` : ""}` +
    `const answer = await fetch(${quoted(new URL(path, url).href)}, {\n  method: "POST",\n` +
    `${sent.length ? `  headers: {\n${sent.join("")}  },\n` : ""}  body: ${content},\n});\n` +
    (events
      ? "for await (const chunk of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) {\n  console.log(chunk);\n}\n"
      : "console.log(answer.status, await answer.json());\n");
  const imports = code.includes("await readFile(") ? 'import { readFile } from "node:fs/promises";\n\n' : "";
  return { code: imports + code, files: files.kept };
}

/** Whether a literal of TypeScript says the same as a text of JSON. */
const isExact = (json) => !json.includes("__proto__") && !json.match(/-?\d{16,}/g)?.some((digits) => String(Number(digits)) !== digits);

/** JSON as a literal of Python; as it is typed while it is none. */
function literal(json) {
  const words = { true: "True", false: "False", null: "None" };
  if (jsonError(json)) return json;
  return json.replace(/"(?:[^"\\]|\\.)*"|true|false|null/g, (word) => words[word] ?? quoted(JSON.parse(word)));
}
