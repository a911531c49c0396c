// @ts-check
/** From the form to a request. Pure, so that the page and the snippets send the same. */

import { jsonError, readJson } from "./json_text.js";

/**
 * A declared input, as `/status` tells it.
 * @typedef {{name: string, kind: string, media_types?: string[], optional?: boolean,
 *   dtype?: string | null, shape?: number[] | null, items?: Port | null, schema?: any,
 *   description?: string}} Port
 * @typedef {{name: string, type: string, blob: Blob | null}} Upload
 * @typedef {{given: boolean, text: string, files: Upload[]}} Value What the form has of an input.
 * @typedef {{deadline?: string, priority?: string, version?: string, events?: boolean}} Options
 * @typedef {{name: string, file?: Upload, text?: string, json?: string}} Field
 * @typedef {{path: string, headers: Record<string, string>, events: boolean}
 *   & ({file: Upload} | {text: string} | {json: string} | {form: Field[]})} Plan
 *   `json` is a text of JSON; the headers have the body's Content-Type, but not that of a form.
 */

/** @type {Port} */
const IMAGE = { name: "data", kind: "image" };
const OCTETS = "application/octet-stream";
const FILE_KINDS = new Set(["image", "bytes"]);
const MOST_EXAMPLE_VALUES = 1_000_000;

/** @param {Port} port */
export const isFile = (port) => FILE_KINDS.has(port.kind);

/** Whether an input is a list of files. @param {Port} port */
export const isFiles = (port) => port.kind === "list" && !!port.items && isFile(port.items);

/** @param {Port} port */
export const takesSound = (port) =>
  port.kind === "bytes" && (port.media_types || []).some((type) => type.startsWith("audio/"));

/**
 * @param {{inputs?: Port[] | null}} pipeline
 * @returns {Port[]}
 */
export const portsOf = (pipeline) => (pipeline.inputs?.length ? pipeline.inputs : [IMAGE]);

/**
 * Return the media type that a file is sent with. What would be read as JSON or a form has none.
 * @param {string} type
 */
export const typeOf = (type) => (!type || /json|form/.test(type) ? OCTETS : type);

/**
 * Return the request that a form means.
 * @param {{name: string, inputs?: Port[] | null, stream_input?: any}} pipeline
 * @param {Record<string, Value>} values by input
 * @param {Options} [options]
 * @returns {Plan}
 */
export function planOf(pipeline, values, options = {}) {
  const ports = portsOf(pipeline);
  const path =
    `predict/${encodeURIComponent(pipeline.name)}` +
    (options.version ? `/versions/${encodeURIComponent(options.version)}` : "");
  /** @type {Record<string, string>} */
  const headers = {};
  const events = !!options.events;
  if (events) headers.Accept = "text/event-stream";
  if (options.deadline) headers["Penstock-Deadline-Ms"] = options.deadline;
  if (options.priority) headers["Penstock-Priority"] = options.priority;
  const plan = { path, headers, events };
  const given = ports.filter((port) => values[port.name].given);
  const [only] = ports;
  if (ports.length === 1 && given.length) {
    const value = values[only.name];
    if (isFile(only)) {
      headers["Content-Type"] = typeOf(value.files[0].type);
      return { ...plan, file: value.files[0] };
    }
    if (only.kind === "text" && (pipeline.stream_input || isPlain(value.text))) {
      headers["Content-Type"] = (only.media_types || []).find((type) => !type.includes("*")) || "text/plain";
      return { ...plan, text: value.text };
    }
  }
  if (given.some((port) => values[port.name].files.length)) {
    return { ...plan, form: given.flatMap((port) => fieldsOf(port, values[port.name])) };
  }
  headers["Content-Type"] = "application/json";
  if (ports.length === 1 && given.length) return { ...plan, json: jsonOf(only, values[only.name]) };
  const members = given.map((port) => `${JSON.stringify(port.name)}: ${jsonOf(port, values[port.name])}`);
  return { ...plan, json: `{${members.join(", ")}}` };
}

/** Whether a text can be a body or a shell's word as it is. @param {string} text */
const isPlain = (text) => text !== "" && !/[\u0000-\u0008\u000b-\u001f\u007f]/.test(text);

/** @param {Port} port @param {Value} value @returns {Field[]} */
function fieldsOf(port, value) {
  const { name } = port;
  if (value.files.length) return value.files.map((file) => ({ name, file }));
  return port.kind === "text" ? [{ name, text: value.text }] : [{ name, json: jsonOf(port, value) }];
}

/** @param {Port} port @param {Value} value */
function jsonOf(port, value) {
  if (port.kind === "text") return JSON.stringify(value.text);
  return isFiles(port) ? "[]" : value.text.trim();
}

/**
 * Return the body and the headers for `fetch`.
 * @param {Plan} plan
 * @returns {{method: string, headers: Record<string, string>, body: BodyInit}}
 */
export function initOf(plan) {
  const init = { method: "POST", headers: plan.headers };
  if ("file" in plan) return { ...init, body: /** @type {Blob} */ (plan.file.blob) };
  if ("text" in plan) return { ...init, body: plan.text };
  if ("json" in plan) return { ...init, body: plan.json };
  const body = new FormData();
  for (const { name, file, text, json } of plan.form) {
    if (file) body.append(name, new Blob([/** @type {Blob} */ (file.blob)], { type: typeOf(file.type) }), file.name);
    // A form changes the ends of lines of plain strings, but not those of files.
    else if (/[\r\n]/.test(text ?? "")) body.append(name, new Blob([text ?? ""], { type: "text/plain" }));
    else if (json !== undefined) body.append(name, new Blob([json], { type: "application/json" }));
    else body.append(name, text ?? "");
  }
  return { ...init, body };
}

/**
 * Return what is missing or wrong in a value, or "". Errors of JSON are told where it is typed.
 * @param {Port} port
 * @param {Value} value
 */
export function faultOf(port, value) {
  if (!value.given) return "";
  if (isFile(port)) return value.files.length ? "" : `Choose ${port.kind === "image" ? "a picture" : "a file"}.`;
  if (isFiles(port) || port.kind === "text") return "";
  const text = value.text.trim();
  if (port.kind === "integer") return /^-?\d+$/.test(text) ? "" : "Type a whole number, such as 3.";
  if (port.kind === "number") {
    const isNumber = !jsonError(text) && typeof JSON.parse(text) === "number";
    return isNumber ? "" : "Type a number, such as 1.5.";
  }
  const error = jsonError(text);
  if (error) return error.message;
  if (port.kind === "list" || port.kind === "tensor") {
    const isArray = text.startsWith("[");
    if (port.kind === "list" && !isArray) return "Type a list: [ … ].";
  }
  return "";
}

/**
 * Return what a form starts with, so that one click gives an answer.
 * @param {Port} port
 * @returns {Value}
 */
export function startOf(port) {
  const given = !port.optional;
  const typed = !isFile(port) && !isFiles(port);
  return { given, text: typed ? exampleText(port) : "", files: [] };
}

/**
 * @param {Port} port
 * @returns {string}
 */
export function exampleText(port) {
  if (port.kind === "text") return "Hello from Penstock.";
  if (port.kind === "tensor") return exampleTensor(port);
  return written(exampleOf(port), "json");
}

/** @param {Port} port @returns {any} */
function exampleOf(port) {
  switch (port.kind) {
    case "integer":
      return 1;
    case "number":
      return 1.5;
    case "boolean":
      return true;
    case "text":
      return "Hello";
    case "image":
    case "bytes":
      return "";
    case "tensor":
      return JSON.parse(exampleTensor(port) || "[]");
    case "list":
      return [exampleOf(port.items || { name: "", kind: "json" })];
    default:
      return port.schema ? exampleOfSchema(port.schema, port.schema) : {};
  }
}

/** A tensor of one row, with a line for each innermost row; "" for one that is too long. @param {Port} port */
function exampleTensor(port) {
  const shape = (port.shape || [3]).map((size, axis) => (size >= 0 ? size : axis ? 4 : 1));
  const dtype = (port.dtype || "").toLowerCase();
  const one = /bool/.test(dtype) ? "false" : /str|bytes/.test(dtype) ? '"a"' : /^u?int/.test(dtype) ? "1" : "0.5";
  if (shape.reduce((product, size) => product * size, 1) > MOST_EXAMPLE_VALUES) return "";
  let text = one;
  for (const [back, size] of shape.toReversed().entries()) {
    text = `[${Array(size).fill(text).join(back ? ",\n" : ", ")}]`;
  }
  return text;
}

/**
 * Return a value that fits a JSON Schema, as far as the schema is understood.
 * @param {any} schema
 * @param {any} root where references point into
 * @param {number} [depth]
 * @returns {any}
 */
export function exampleOfSchema(schema, root, depth = 0) {
  if (typeof schema !== "object" || schema === null || depth > 12) return null;
  for (const known of ["const", "default"]) if (known in schema) return schema[known];
  if (schema.examples?.length) return schema.examples[0];
  if ("example" in schema) return schema.example;
  if (schema.enum?.length) return schema.enum[0];
  if (typeof schema.$ref === "string") {
    const steps = schema.$ref.replace(/^#\/?/, "").split("/").filter(Boolean);
    const target = steps.reduce(
      (/** @type {any} */ at, /** @type {string} */ step) => at?.[step.replaceAll("~1", "/").replaceAll("~0", "~")],
      root,
    );
    return exampleOfSchema(target, root, depth + 1);
  }
  const either = schema.oneOf || schema.anyOf;
  if (either?.length) return exampleOfSchema(either.find((/** @type {any} */ one) => one.type !== "null"), root, depth + 1);
  if (schema.allOf?.length) {
    const all = schema.allOf.map((/** @type {any} */ one) => exampleOfSchema(one, root, depth + 1));
    return all.every((/** @type {any} */ one) => one && typeof one === "object") ? Object.assign({}, ...all) : all[0];
  }
  const type = [schema.type].flat().find((/** @type {any} */ one) => one !== "null");
  if (type === "object" || schema.properties) {
    const required = new Set(schema.required || []);
    const members = Object.entries(schema.properties || {})
      .filter(([key]) => required.has(key) || depth < 4)
      .map(([key, member]) => [key, exampleOfSchema(member, root, depth + 1)]);
    return Object.fromEntries(members);
  }
  if (type === "array" || schema.items || schema.prefixItems) {
    if (schema.prefixItems) return schema.prefixItems.map((/** @type {any} */ one) => exampleOfSchema(one, root, depth + 1));
    const size = Math.min(Math.max(schema.minItems ?? 1, depth < 6 ? 1 : 0), 16);
    return Array(size).fill(exampleOfSchema(schema.items ?? {}, root, depth + 1));
  }
  if (type === "integer" || type === "number") return exampleNumber(schema, type === "integer");
  if (type === "boolean") return true;
  if (type === "string") return exampleString(schema);
  return type === "null" || "type" in schema ? null : {};
}

/** @param {any} schema @param {boolean} whole */
function exampleNumber(schema, whole) {
  const step = schema.multipleOf ?? (whole ? 1 : 0.5);
  const above = schema.exclusiveMinimum !== undefined ? schema.exclusiveMinimum + step : undefined;
  const least = schema.minimum ?? above;
  const most = schema.maximum ?? (schema.exclusiveMaximum !== undefined ? schema.exclusiveMaximum - step : undefined);
  const value = Math.max(least ?? -Infinity, Math.min(most ?? Infinity, whole ? 1 : 0.5));
  return whole || schema.multipleOf ? Math.ceil(value / step) * step : value;
}

/** @param {any} schema */
function exampleString(schema) {
  /** @type {Record<string, string>} */
  const formats = {
    date: "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    time: "12:00:00Z",
    email: "ada@example.com",
    uri: "https://example.com/",
    uuid: "123e4567-e89b-12d3-a456-426614174000",
    ipv4: "192.0.2.1",
  };
  const text = formats[schema.format] ?? "text";
  return text.padEnd(Math.min(schema.minLength ?? 0, 1000), "x").slice(0, schema.maxLength ?? Infinity);
}

/**
 * Write a value over several lines where it is long.
 * @param {any} value
 * @param {"json" | "python" | "typescript"} language
 */
export const written = (value, language) => layout(readJson(JSON.stringify(value)), language, 0);

const WORDS = { python: /** @type {Record<string, string>} */ ({ true: "True", false: "False", null: "None" }) };

/**
 * Write a tree as a literal of a language. Numbers keep their digits.
 * @param {import("./json_text.js").Tree} tree
 * @param {"json" | "python" | "typescript"} language
 * @param {number} indent spaces in front of its first line
 * @returns {string}
 */
export function layout(tree, language, indent) {
  if (tree.kind === "number") return tree.text;
  if (tree.kind === "word") return language === "python" ? WORDS.python[tree.text] : tree.text;
  if (tree.kind === "string") return JSON.stringify(tree.value);
  const inner = indent + (language === "python" ? 4 : 2);
  const [open, close] = tree.kind === "array" ? "[]" : "{}";
  const parts =
    tree.kind === "array"
      ? tree.items.map((item) => layout(item, language, inner))
      : tree.members.map(([key, member]) => `${keyOf(key, language)}: ${layout(member, language, inner)}`);
  const line = `${open}${parts.join(", ")}${close}`;
  if (!line.includes("\n") && line.length + indent <= 72) return line;
  const comma = language === "json" ? "" : ",";
  const pad = " ".repeat(inner);
  return `${open}\n${pad}${parts.join(`,\n${pad}`)}${comma}\n${" ".repeat(indent)}${close}`;
}

/** `__proto__` in an object literal of TypeScript would not be a member. @param {string} key @param {string} language */
const keyOf = (key, language) =>
  language !== "typescript" ? JSON.stringify(key) : /^[a-z_]\w*$/i.test(key) && key !== "__proto__" ? key : `[${JSON.stringify(key)}]`;
