// @ts-check
/** A request as a command or program that sends it. Pure. */

import { JsonError, readJson } from "./json_text.js";
import { layout, typeOf } from "./request.js";

/**
 * @typedef {import("./request.js").Plan} Plan
 * @typedef {import("./request.js").Field} Field
 * @typedef {{code: string, files: {name: string, content: Blob | string}[]}} Snippet
 *   `files`: what the code reads from disk and the page alone may have.
 * @typedef {{url: string, key: boolean}} Where `url`: that of the page. `key`: it needs an API key.
 */

const LONG = 2000; // characters: a longer value comes from a file

/** @type {Record<string, (plan: Plan, where: Where) => Snippet>} */
export const SNIPPETS = { curl, Python: python, TypeScript: typescript };

/** @param {string} text */
const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
const quoted = JSON.stringify;

/** A file's name as a path: not an option, and not standard input. @param {string} name */
const pathOf = (name) => (/^[-<@]/.test(name) ? `./${name}` : name);

/** Return whether a text must come from a file: it is long, or no shell's word. @param {string} text */
const apart = (text) => text.length > LONG || /[\u0000-\u0008\u000b-\u001f\u007f]/.test(text);

/** Collects the files that a snippet reads. @param {Snippet["files"]} files */
const keeper = (files) => (/** @type {string} */ name, /** @type {Blob | string | null} */ content) => {
  if (content !== null && !files.some((file) => file.name === name)) files.push({ name, content });
  return pathOf(name);
};

/** @param {Plan} plan @param {Where} where @returns {Snippet} */
export function curl(plan, where) {
  /** @type {Snippet["files"]} */
  const files = [];
  const keep = keeper(files);
  const words = [plan.events ? "curl -N" : "curl"];
  for (const [name, value] of Object.entries(plan.headers)) words.push(`-H ${shell(`${name}: ${value}`)}`);
  if (where.key) words.push('-H "Authorization: Bearer $PENSTOCK_API_KEY"');
  if ("file" in plan) {
    const path = keep(plan.file.name, plan.file.blob);
    // -T sends a stream while it reads it; a colon would not survive --data-binary's default type.
    words.push(plan.events ? `-X POST -T ${shell(path.replace(/[[\]{}]/g, "\\$&"))}` : `--data-binary ${shell(`@${path}`)}`);
  } else if ("form" in plan) {
    for (const { name, file, text, json } of plan.form) {
      const start = `${name}=`;
      if (file) {
        const path = keep(file.name, file.blob);
        words.push(`-F ${shell(`${start}@"${path.replace(/[\\"]/g, "\\$&")}";type=${typeOf(file.type)}`)}`);
      } else if (apart(json ?? text ?? "")) {
        const path = keep(`${name}.${json === undefined ? "txt" : "json"}`, json ?? text ?? "");
        words.push(`-F ${shell(`${start}<"${path}"${json === undefined ? "" : ";type=application/json"}`)}`);
      } else words.push(`--form-string ${shell(start + (json ?? text))}`);
    }
  } else {
    const text = "json" in plan ? plan.json : plan.text;
    const name = "json" in plan ? "body.json" : "body.txt";
    words.push(apart(text) ? `--data-binary @${keep(name, text)}` : `--data-raw ${shell(text)}`);
  }
  words.push(shell(new URL(plan.path, where.url).href));
  return { code: words.join(" \\\n  "), files };
}

/** @param {Plan} plan @param {Where} where @returns {Snippet} */
export function python(plan, where) {
  /** @type {Snippet["files"]} */
  const files = [];
  const keep = keeper(files);
  const read = (/** @type {string} */ name, /** @type {Blob | string | null} */ content) =>
    `Path(${quoted(keep(name, content))}).read_bytes()`;
  const { "Content-Type": type, ...others } = plan.headers;
  /** @type {Record<string, string>} */
  const headers = "json" in plan || !type ? others : plan.headers;
  const lines = Object.entries(headers).map(([name, value]) => `        ${quoted(name)}: ${quoted(value)},`);
  if (where.key) lines.push(`        "Authorization": f"Bearer {os.environ['PENSTOCK_API_KEY']}",`);
  const given = [`    ${quoted(new URL(plan.path, where.url).href)},`];
  if ("file" in plan) given.push(`    content=${read(plan.file.name, plan.file.blob)},`);
  else if ("form" in plan) {
    given.push("    files=[");
    for (const { name, file, text, json } of plan.form) {
      const long = apart(json ?? text ?? "");
      const content = file
        ? read(file.name, file.blob)
        : long
          ? read(`${name}.${json === undefined ? "txt" : "json"}`, json ?? text ?? "")
          : quoted(json ?? text);
      const rest = file ? `, ${quoted(typeOf(file.type))}` : json === undefined ? "" : ', "application/json"';
      given.push(`        (${quoted(name)}, (${file ? quoted(file.name) : "None"}, ${content}${rest})),`);
    }
    given.push("    ],");
  } else if ("json" in plan) {
    if (apart(plan.json)) {
      given.push(`    content=${read("body.json", plan.json)},`);
      lines.unshift('        "Content-Type": "application/json",');
    } else given.push(`    json=${literal(plan.json, "python", 4)},`);
  } else given.push(`    content=${apart(plan.text) ? read("body.txt", plan.text) : `${quoted(plan.text)}.encode()`},`);
  if (lines.length) given.push("    headers={", ...lines, "    },");
  given.push(`    timeout=${plan.events ? "None" : "60"},`);
  const call = given.join("\n");
  const body = plan.events
    ? `with httpx.stream(\n    "POST",\n${call}\n) as answer:\n    for line in answer.iter_lines():\n        print(line)\n`
    : `answer = httpx.post(\n${call}\n)\nprint(answer.status_code, answer.json())\n`;
  const standard = [...(where.key ? ["import os"] : []), ...(call.includes("Path(") ? ["from pathlib import Path"] : [])];
  return { code: `${standard.length ? `${standard.join("\n")}\n\n` : ""}import httpx\n\n${body}`, files };
}

/** @param {Plan} plan @param {Where} where @returns {Snippet} */
export function typescript(plan, where) {
  /** @type {Snippet["files"]} */
  const files = [];
  const keep = keeper(files);
  const read = (/** @type {string} */ name, /** @type {Blob | string | null} */ content) =>
    `await readFile(${quoted(keep(name, content))})`;
  const lines = Object.entries(plan.headers).map(
    ([name, value]) => `    ${/^\w+$/.test(name) ? name : quoted(name)}: ${quoted(value)},`,
  );
  if (where.key) lines.push("    Authorization: `Bearer ${process.env.PENSTOCK_API_KEY}`,");
  const before = [];
  let body;
  if ("file" in plan) body = read(plan.file.name, plan.file.blob);
  else if ("form" in plan) {
    body = "form";
    before.push("const form = new FormData();");
    for (const { name, file, text, json } of plan.form) {
      const value = json ?? text ?? "";
      const content = file
        ? read(file.name, file.blob)
        : apart(value)
          ? read(`${name}.${json === undefined ? "txt" : "json"}`, value)
          : quoted(value);
      const type = file ? typeOf(file.type) : json === undefined ? "text/plain" : "application/json";
      const plain = !file && json === undefined && !apart(value) && !/[\r\n]/.test(value);
      const blob = `new Blob([${content}], { type: ${quoted(type)} })`;
      before.push(`form.append(${quoted(name)}, ${plain ? content : blob}${file ? `, ${quoted(file.name)}` : ""});`);
    }
  } else if ("json" in plan) {
    if (apart(plan.json)) body = read("body.json", plan.json);
    else body = isExact(plan.json) ? `JSON.stringify(${literal(plan.json, "typescript", 2)})` : quoted(plan.json);
  } else body = apart(plan.text) ? read("body.txt", plan.text) : quoted(plan.text);
  const head = [...before, body].some((line) => line.includes("await readFile("))
    ? 'import { readFile } from "node:fs/promises";\n\n'
    : "";
  const call = [
    `const answer = await fetch(${quoted(new URL(plan.path, where.url).href)}, {`,
    '  method: "POST",',
    ...(lines.length ? ["  headers: {", ...lines, "  },"] : []),
    `  body${body === "form" ? ": form" : `: ${body}`},`,
    "});",
  ];
  const end = plan.events
    ? "for await (const chunk of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) {\n  console.log(chunk);\n}\n"
    : "console.log(answer.status, await answer.json());\n";
  return { code: `${head}${[...before, ...(before.length ? [""] : []), ...call].join("\n")}\n${end}`, files };
}

/** What is typed may not be JSON yet: then it is shown as it is. @param {string} json @param {"python" | "typescript"} language @param {number} indent */
function literal(json, language, indent) {
  try {
    return layout(readJson(json), language, indent);
  } catch (error) {
    if (error instanceof JsonError) return json;
    throw error;
  }
}

/** Whether a program's floats hold all numbers of a text. @param {string} json */
const isExact = (json) => !(json.match(/-?\d{16,}/g) || []).some((digits) => String(Number(digits)) !== digits);
