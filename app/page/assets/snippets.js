// @ts-check
/** A request as a command or program that sends it. Pure. */

import { jsonError } from "./json_text.js";
import { isPlain, typeOf } from "./request.js";

const LONG = 2000; // characters: what is longer comes from a file

/**
 * Each takes a plan, the `url` of the page and whether it needs a `key`. It returns the code, and
 * the `files` that the code reads.
 * @type {Record<string, (plan: any, where: {url: string, key: boolean}) => {code: string, files: Map<string, any>}>}
 */
export const SNIPPETS = { curl, Python: python, TypeScript: typescript };

const quoted = JSON.stringify;
export const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
const textOf = ({ text, json }) => text ?? json;

/** Return the path of what a part reads, and keep its content; "": the code has its text. */
function pathOf(part, files) {
  const { name, file, json } = part;
  if (!file && textOf(part).length <= LONG && isPlain(textOf(part))) return "";
  const own = file?.name ?? `${name}.${json === undefined ? "txt" : "json"}`;
  if (file?.size !== 0) files.set(own, file ?? textOf(part));
  return /^[-<@]/.test(own) ? `./${own}` : own; // no option, and not standard input
}

function curl({ path, headers, events, body, form }, { url, key }) {
  const files = new Map();
  const words = [events ? "curl -N" : "curl"];
  for (const [name, value] of Object.entries(headers)) words.push(`-H ${shell(`${name}: ${value}`)}`);
  if (key) words.push('-H "Authorization: Bearer $PENSTOCK_API_KEY"');
  for (const part of form ?? []) {
    const file = pathOf(part, files);
    const value = `"${(file || textOf(part)).replace(/[\\"]/g, "\\$&")}";type=${typeOf(part)}`;
    if (file || part.json?.startsWith("[")) words.push(`-F ${shell(`${part.name}=${file && (part.file ? "@" : "<")}${value}`)}`);
    else words.push(`--form-string ${shell(`${part.name}=${textOf(part)}`)}`);
  }
  const file = body && pathOf(body, files);
  if (body) words.push(file ? `--data-binary ${shell(`@${file}`)}` : `--data-raw ${shell(textOf(body))}`);
  words.push(shell(new URL(path, url).href));
  return { code: words.join(" \\\n  "), files };
}

function python({ path, headers, events, body, form }, { url, key }) {
  const files = new Map();
  const read = (part) => {
    const file = pathOf(part, files);
    return file ? `Path(${quoted(file)}).read_bytes()` : `${quoted(textOf(part))}.encode()`;
  };
  const isLiteral = body?.json !== undefined && !pathOf(body, files);
  const lines = [quoted(new URL(path, url).href)];
  if (body) lines.push(isLiteral ? `json=${literal(body.json)}` : `content=${read(body)}`);
  else lines.push(`files=[\n${form.map((part) => `        (${quoted(part.name)}, (${part.file ? quoted(part.file.name) : "None"}, ${read(part)}, ${quoted(typeOf(part))})),\n`).join("")}    ]`);
  const sent = Object.entries(headers).filter(([name]) => !isLiteral || name !== "Content-Type").map(([name, value]) => `        ${quoted(name)}: ${quoted(value)},\n`);
  if (key) sent.push(`        "Authorization": f"Bearer {os.environ['PENSTOCK_API_KEY']}",\n`);
  if (sent.length) lines.push(`headers={\n${sent.join("")}    }`);
  const call = [...lines, `timeout=${events ? "None" : "60"}`].map((line) => `    ${line},\n`).join("");
  const imports = `${key ? "import os\n" : ""}${call.includes("Path(") ? "from pathlib import Path\n" : ""}`;
  const code = events
    ? `with httpx.stream(\n    "POST",\n${call}) as answer:\n    for line in answer.iter_lines():\n        print(line)\n`
    : `answer = httpx.post(\n${call})\nprint(answer.status_code, answer.json())\n`;
  return { code: `${imports && `${imports}\n`}import httpx\n\n${code}`, files };
}

function typescript({ path, headers, events, body, form }, { url, key }) {
  const files = new Map();
  const read = (part) => {
    const file = pathOf(part, files);
    return file ? `await readFile(${quoted(file)})` : quoted(textOf(part));
  };
  const appended = (form ?? []).map((part) => {
    const blob = `new Blob([${read(part)}], { type: ${quoted(typeOf(part))} })`;
    return `form.append(${quoted(part.name)}, ${blob}${part.file ? `, ${quoted(part.file.name)}` : ""});\n`;
  });
  const isLiteral = body?.json !== undefined && !pathOf(body, files) && isExact(body.json);
  const sent = Object.entries(headers).map(([name, value]) => `    ${quoted(name)}: ${quoted(value)},\n`);
  if (key) sent.push("    Authorization: `Bearer ${process.env.PENSTOCK_API_KEY}`,\n");
  const code = [
    form ? `const form = new FormData();\n${appended.join("")}\n` : "",
    `const answer = await fetch(${quoted(new URL(path, url).href)}, {\n  method: "POST",\n`,
    sent.length ? `  headers: {\n${sent.join("")}  },\n` : "",
    `  body: ${form ? "form" : isLiteral ? `JSON.stringify(${body.json})` : read(body)},\n});\n`,
    events
      ? "for await (const chunk of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) {\n  console.log(chunk);\n}\n"
      : "console.log(answer.status, await answer.json());\n",
  ].join("");
  return { code: (code.includes("await readFile(") ? 'import { readFile } from "node:fs/promises";\n\n' : "") + code, files };
}

/** Whether a literal of TypeScript says the same as a text of JSON. */
const isExact = (json) => !json.includes("__proto__") && !json.match(/-?\d{16,}/g)?.some((digits) => String(Number(digits)) !== digits);

/** JSON as a literal of Python; as it is typed while it is none. */
function literal(json) {
  const words = { true: "True", false: "False", null: "None" };
  return jsonError(json) ? json : json.replace(/"(?:[^"\\]|\\.)*"|true|false|null/g, (word) => words[word] ?? quoted(JSON.parse(word)));
}
