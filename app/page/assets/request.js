// @ts-check
/** From the form to a request. Pure, so that the page and the code that it shows send the same. */

import { jsonError } from "./json_text.js";

/**
 * @typedef {any} Port an input as `/status` has it
 * @typedef {{given: boolean, text: string, files: File[]}} Value what the form has of an input
 * @typedef {{name?: string, file?: File, text?: string, json?: string}} Part one of the three
 * @typedef {{path: string, headers: Record<string, string>, events: boolean, body?: Part, form?: Part[]}} Plan
 */

const MOST_EXAMPLE_VALUES = 1_000_000;

/** Whether an input is a list of files. @param {Port} port */
export const isFiles = ({ kind, items }) => kind === "list" && /^(image|bytes)$/.test(items?.kind);

/** The port of each file of a list; else the port. @param {Port} port */
export const fileOf = (port) => (isFiles(port) ? port.items : port);

/** @param {Port} port */
export const isUpload = (port) => /^(image|bytes)$/.test(fileOf(port).kind);

/** @param {any} pipeline @returns {Port[]} */
export const portsOf = ({ inputs }) => (inputs?.length ? inputs : [{ name: "data", kind: "image" }]);

// A file that would be read as JSON or as a form is sent without its type.
export const typeOf = ({ file, json }) =>
  !file ? (json === undefined ? "text/plain" : "application/json") : !file.type || /json|form/.test(file.type) ? "application/octet-stream" : file.type;

/** Whether a shell's word can hold a text. @param {string} text */
export const isPlain = (text) => !/[\u0000-\u0008\u000b-\u001f\u007f]/.test(text);

/** @param {any} pipeline @param {Record<string, Value>} values by input @param {any} options @returns {Plan} */
export function planOf(pipeline, values, { deadline, priority, version, events = false } = {}) {
  const ports = portsOf(pipeline);
  const query = pipeline.sequences ? "?sequence=try" : ""; // its steps go on from one try to the next
  const path = `predict/${encodeURIComponent(pipeline.name)}${version ? `/versions/${version}` : ""}${query}`;
  const headers = {
    ...(events && { Accept: "text/event-stream" }),
    ...(deadline && { "Penstock-Deadline-Ms": deadline }),
    ...(priority && { "Penstock-Priority": priority }),
  };
  const whole = (part, type = typeOf(part)) => ({ path, events, headers: { ...headers, "Content-Type": type }, body: { ...part, name: "body" } });
  const jsonOf = ({ json, text }) => json ?? JSON.stringify(text);
  const parts = ports.flatMap((port) => {
    const { name } = port;
    const { given, text, files } = values[name];
    if (!given) return [];
    const part = port.kind === "text" ? { name, text } : { name, json: isFiles(port) ? "[]" : text.trim() };
    return files.length ? files.map((file) => ({ name, file })) : [part];
  });
  const [only] = parts;
  if (ports.length === 1 && only && !(isFiles(ports[0]) && only.file)) {
    const isText = only.text !== undefined && (pipeline.stream_input || (only.text && isPlain(only.text)));
    if (isText) return whole(only, ports[0].media_types?.find((type) => !type.includes("*")));
    return whole(only.file ? only : { json: jsonOf(only) });
  }
  if (parts.some(({ file }) => file)) return { path, events, headers, form: parts };
  return whole({ json: `{${parts.map((part) => `${JSON.stringify(part.name)}: ${jsonOf(part)}`).join(", ")}}` });
}

/** @param {Plan} plan @returns {RequestInit} */
export function initOf({ headers, body, form }) {
  if (body) return { method: "POST", headers, body: body.file ?? body.text ?? body.json };
  const data = new FormData();
  // A form changes the ends of lines of plain strings, but not those in a blob.
  for (const part of form) data.append(part.name, new Blob([part.file ?? part.text ?? part.json], { type: typeOf(part) }), part.file?.name);
  return { method: "POST", headers, body: data };
}

/** Return what is missing or wrong in a value, or "". @param {Port} port @param {Value} value */
export function faultOf(port, { given, text, files }) {
  const { kind } = port;
  if (!given || isFiles(port) || kind === "text") return "";
  if (isUpload(port)) return files.length ? "" : `Choose a ${kind === "image" ? "picture" : "file"} first.`;
  if (kind === "integer") return /^\s*-?\d+\s*$/.test(text) ? "" : "Type a whole number, such as 3.";
  const error = jsonError(text);
  if (kind === "number") return error || typeof JSON.parse(text) !== "number" ? "Type a number, such as 1.5." : "";
  return error?.message ?? (kind === "list" && text.trim()[0] !== "[" ? "Type a list: [ … ]." : "");
}

/** Return a text to start with, so that one click gives an answer. @param {Port} port @returns {string} */
export function exampleOf(port) {
  const { kind, dtype, shape, items, example } = port;
  if (isUpload(port)) return "";
  if (kind === "list") return `[${items?.kind === "text" ? '"Hello", "Penstock"' : items ? exampleOf(items) : ""}]`;
  if (kind === "json") return JSON.stringify(example ?? {}, null, 2);
  if (kind !== "tensor") return { text: "Hello from Penstock.", integer: "1", number: "1.5", boolean: "true" }[kind];
  const sizes = (shape ?? [3]).map((size, axis) => (size >= 0 ? size : axis ? 4 : 1));
  if (sizes.reduce((product, size) => product * size, 1) > MOST_EXAMPLE_VALUES) return "";
  const one = /^bool/i.test(dtype) ? "false" : /^(str|bytes)/i.test(dtype) ? '"a"' : /int/i.test(dtype) ? "1" : "0.5";
  return sizes.reduceRight((text, size, axis) => `[${Array(size).fill(text).join(axis < sizes.length - 1 ? ",\n" : ", ")}]`, one);
}
