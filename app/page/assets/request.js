// @ts-check
/** From the form to a request. Pure, so that the page and the code that it shows send the same. */

import { jsonError } from "./json_text.js";

/**
 * @typedef {{name: string, kind: string, media_types?: string[], optional?: boolean, dtype?: string,
 *   shape?: number[], items?: Port, example?: any, description?: string}} Port as `/status` has it
 * @typedef {{name: string, type: string, blob: Blob | null}} Upload
 * @typedef {{given: boolean, text: string, files: Upload[]}} Value what the form has of an input
 * @typedef {{name: string, file?: Upload, text?: string, json?: string}} Part one of the three
 * @typedef {{path: string, headers: Record<string, string>, events: boolean, body?: Part,
 *   form?: Part[]}} Plan either a body or a form
 */

const MOST_EXAMPLE_VALUES = 1_000_000;

/** @param {Port} port */
export const isFiles = (port) => port.kind === "list" && ["image", "bytes"].includes(port.items?.kind);

/** The port of each file of a list; else the port. @param {Port} port */
export const fileOf = (port) => (isFiles(port) ? port.items : port);

/** @param {Port} port */
export const isUpload = (port) => ["image", "bytes"].includes(fileOf(port).kind);

/** @param {{inputs?: Port[]}} pipeline @returns {Port[]} */
export const portsOf = ({ inputs }) => (inputs?.length ? inputs : [{ name: "data", kind: "image" }]);

/** What would be read as JSON or as a form is sent without its type. @param {string} type */
export const typeOf = (type) => (!type || /json|form/.test(type) ? "application/octet-stream" : type);

/** @param {Part} part the type of a form's field */
export const typeOfPart = ({ file, json }) => (file ? typeOf(file.type) : json === undefined ? "text/plain" : "application/json");

/** Whether a shell's word can hold a text. @param {string} text */
export const isPlain = (text) => !/[\u0000-\u0008\u000b-\u001f\u007f]/.test(text);

/**
 * @param {{name: string, inputs?: Port[], stream_input?: string}} pipeline
 * @param {Record<string, Value>} values by input
 * @param {{deadline?: string, priority?: string, version?: string, events?: boolean}} [options]
 * @returns {Plan}
 */
export function planOf(pipeline, values, { deadline, priority, version, events = false } = {}) {
  const ports = portsOf(pipeline);
  const path = `predict/${encodeURIComponent(pipeline.name)}${version ? `/versions/${version}` : ""}`;
  const headers = {
    ...(events && { Accept: "text/event-stream" }),
    ...(deadline && { "Penstock-Deadline-Ms": deadline }),
    ...(priority && { "Penstock-Priority": priority }),
  };
  const typed = (type, part) => ({ path, events, headers: { ...headers, "Content-Type": type }, body: { name: "body", ...part } });
  const given = ports.filter((port) => values[port.name].given);
  /** @type {Part[]} */
  const parts = given.flatMap((port) => {
    const { name, kind } = port;
    const { text, files } = values[name];
    const part = kind === "text" ? { name, text } : { name, json: isFiles(port) ? "[]" : text.trim() };
    return files.length ? files.map((file) => /** @type {Part} */ ({ name, file })) : [part];
  });
  /** @param {Part} part */
  const jsonOf = ({ text, json }) => json ?? JSON.stringify(text);
  if (ports.length === 1 && given.length && !isFiles(ports[0])) {
    const [{ file, text }] = parts;
    if (file) return typed(typeOf(file.type), { file });
    const isBody = text !== undefined && (pipeline.stream_input || (text && isPlain(text)));
    if (isBody) return typed(ports[0].media_types?.find((type) => !type.includes("*")) ?? "text/plain", { text });
    return typed("application/json", { json: jsonOf(parts[0]) });
  }
  if (parts.some(({ file }) => file)) return { path, events, headers, form: parts };
  return typed("application/json", { json: `{${parts.map((part) => `${JSON.stringify(part.name)}: ${jsonOf(part)}`).join(", ")}}` });
}

/** Return what `fetch` takes. @param {Plan} plan @returns {RequestInit} */
export function initOf({ headers, body, form }) {
  if (body) return { method: "POST", headers, body: body.file?.blob ?? body.text ?? body.json };
  const data = new FormData();
  // A form changes the ends of lines of plain strings, but not those in a blob.
  for (const part of form) data.append(part.name, new Blob([part.file?.blob ?? part.text ?? part.json], { type: typeOfPart(part) }), part.file?.name);
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
