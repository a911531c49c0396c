// Write each request of CASES as code, send it as the page does, and print what was answered.
// node requests.mjs URL FOLDER

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { initOf, planOf } from "../../../../app/page/assets/request.js";
import { SNIPPETS } from "../../../../app/page/assets/snippets.js";

const [url, folder] = process.argv.slice(2);
const file = (name, type, content) => new File([content], name, { type });
const upload = (...files) => ({ given: true, text: "", files });
const typed = (text) => ({ given: true, text, files: [] });
const left = { given: false, text: "", files: [] };
const port = (name, kind, more = {}) => ({ name, kind, ...more });
const photo = file("a 'photo'.png", "image/png", "\x89PNG not really");
const TEXT = "It's \"two\"\nlines; $HOME `id` @x\tשלום 😀 \\n";

/** By name: the pipeline, its inputs and values, and options. */
const CASES = {
  image: ["image", [port("data", "image")], { data: upload(photo) }],
  "image of unknown type": ["image", [port("data", "image")], { data: upload(file("x.json", "application/json", "{}x")) }],
  bytes: ["bytes", [port("data", "bytes")], { data: upload(file("-x.bin", "", "{1}\0\xff")) }],
  text: ["text", [port("data", "text")], { data: typed(TEXT) }],
  "text with @": ["text", [port("data", "text")], { data: typed("@file") }],
  "empty text": ["text", [port("data", "text")], { data: typed("") }],
  "text with NUL": ["text", [port("data", "text")], { data: typed("a\0b\r\nc") }],
  "long text": ["text", [port("data", "text")], { data: typed("é".repeat(3000)) }],
  integer: ["integer", [port("data", "integer")], { data: typed("9007199254740993") }],
  number: ["number", [port("data", "number")], { data: typed("1.5e3") }],
  boolean: ["boolean", [port("data", "boolean")], { data: typed("true") }],
  json: ["json", [port("data", "json")], { data: typed('{"a": [null, true, false, 1e2, 12345678901234567890], "true": "null",\n "s": "\\u00e9\\ud83d\\ude00\'"}') }],
  "json with __proto__": ["json", [port("data", "json")], { data: typed('{"__proto__": 1}') }],
  "long json": ["json", [port("data", "json")], { data: typed(JSON.stringify(Array(2000).fill("'"))) }],
  tensor: ["tensor", [port("data", "tensor", { dtype: "FP32", shape: [-1, 2] })], { data: typed("[[1, 2.5]]") }],
  texts: ["texts", [port("data", "list", { items: port("", "text") })], { data: typed('["a", "b"]') }],
  images: ["images", [port("data", "list", { items: port("", "image") })], { data: upload(photo, file('b;".png', "image/png", "b")) }],
  "no images": ["images", [port("data", "list", { items: port("", "image") })], { data: upload() }],
  several: ["several", several(), { photo: upload(photo), title: typed(TEXT), size: typed("2"), tags: typed('["a;b", "\\"c\\""]'), pages: upload() }],
  "several without a file": ["several", several(), { photo: left, title: typed(TEXT), size: left, tags: typed("[]"), pages: upload() }],
  "several, one of them long": ["several", several(), { photo: upload(photo), title: typed("ab;".repeat(2000)), size: left, tags: typed(JSON.stringify(Array(999).fill("x"))), pages: upload(photo, photo) }],
  options: ["text", [port("data", "text")], { data: typed("x") }, { deadline: "5000", priority: "1", version: "1" }],
  events: ["text", [port("data", "text")], { data: typed("x") }, { events: true }],
  stream: ["stream", [port("data", "bytes", { stream: true })], { data: upload(file("x.raw", "", "abc")) }, { events: true }, "data"],
};

function several() {
  const optional = { optional: true };
  return [port("photo", "image", optional), port("title", "text"), port("size", "integer", optional), port("tags", "list", { items: port("", "text") }), port("pages", "list", { items: port("", "image") })];
}

const endings = { curl: "sh", Python: "py", TypeScript: "mts" };
for (const [index, [name, [pipeline, inputs, values, options, stream_input]]] of Object.entries(CASES).entries()) {
  const plan = planOf({ name: pipeline, inputs, stream_input }, values, options);
  const own = join(folder, String(index));
  mkdirSync(own);
  const init = initOf(plan);
  const answer = await fetch(new URL(plan.path, url), { ...init, headers: { ...init.headers, Authorization: "Bearer key" } });
  console.log(JSON.stringify({ name, folder: own, status: answer.status, text: await answer.text() }));
  for (const [language, write] of Object.entries(SNIPPETS)) {
    const { code, files } = write(plan, { url, key: true });
    writeFileSync(join(own, `request.${endings[language]}`), code);
    for (const [kept, content] of files) {
      writeFileSync(join(own, kept), typeof content === "string" ? content : new Uint8Array(await content.arrayBuffer()));
    }
  }
}
