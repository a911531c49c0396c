// @ts-check
/** Reads JSON with the digits of its numbers kept, and says where a text is not JSON. */

/**
 * A value that keeps the text of each number.
 * @typedef {{kind: "word", text: string} | {kind: "number", text: string}
 *   | {kind: "string", value: string} | {kind: "array", items: Tree[]}
 *   | {kind: "object", members: [string, Tree][]}} Tree
 */

/** What is wrong with a text: `index` is the place of it, `line` and `column` count from 1. */
export class JsonError extends Error {
  /**
   * @param {string} text
   * @param {number} index
   * @param {string} expected
   */
  constructor(text, index, expected) {
    const before = text.slice(0, index);
    const line = before.split("\n").length;
    const column = index - before.lastIndexOf("\n");
    const found = index < text.length ? `found ${JSON.stringify(text[index])}` : "the text ends";
    super(`Line ${line}, column ${column}: ${found}, expected ${expected}.`);
    Object.assign(this, { index, line, column });
    this.index = index;
    this.excerpt = text.split("\n")[line - 1].slice(Math.max(0, column - 21), column + 20);
    this.caret = Math.min(column - 1, 20);
  }
}

const NUMBER = /-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
const STRING = /"([^"\\\u0000-\u001f]|\\(["\\/bfnrt]|u[\da-fA-F]{4}))*"/y;
const WORD = /true|false|null/y;
const SPACE = /[ \t\r\n]*/y;
const MAX_DEPTH = 1000;

/**
 * Parse a text. It is for small texts and for errors: `JSON.parse` is quicker.
 * @param {string} text
 * @returns {Tree}
 * @throws {JsonError}
 */
export function readJson(text) {
  let at = 0;
  /** @param {string} expected @returns {never} */
  const fail = (expected) => {
    throw new JsonError(text, at, expected);
  };
  /** @param {RegExp} pattern */
  const take = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at += found[0].length;
    return found && found[0];
  };
  const skip = () => void take(SPACE);
  /** @param {string} expected */
  const string = (expected) => {
    if (text[at] !== '"') fail(expected);
    const found = take(STRING);
    if (found) return /** @type {string} */ (JSON.parse(found));
    at += (/^"([^"\\\u0000-\u001f]|\\(["\\/bfnrt]|u[\da-fA-F]{4}))*/.exec(text.slice(at)) || [""])[0].length;
    return fail(text[at] === "\\" ? "a known escape such as \\n" : 'the end of the string (")');
  };
  /**
   * @template T
   * @param {string} end
   * @param {() => T} one
   */
  const several = (end, one) => {
    /** @type {T[]} */
    const found = [];
    at += 1;
    skip();
    while (text[at] !== end) {
      found.push(one());
      skip();
      if (text[at] === end) break;
      if (text[at] !== ",") fail(`"," or "${end}"`);
      at += 1;
      skip();
      if (text[at] === end) fail(`a value after the comma, not "${end}"`);
    }
    at += 1;
    return found;
  };
  /** @param {number} depth @returns {Tree} */
  const value = (depth) => {
    skip();
    if (depth > MAX_DEPTH) fail(`at most ${MAX_DEPTH} levels`);
    if (text[at] === "[") return { kind: "array", items: several("]", () => value(depth + 1)) };
    if (text[at] === "{") {
      return {
        kind: "object",
        members: several("}", () => {
          const key = string('a key in double quotes');
          skip();
          if (text[at] !== ":") fail('":" after the key');
          at += 1;
          return /** @type {[string, Tree]} */ ([key, value(depth + 1)]);
        }),
      };
    }
    if (text[at] === '"') return { kind: "string", value: string("a string") };
    const word = take(WORD);
    if (word) return { kind: "word", text: word };
    const number = take(NUMBER);
    if (number) return { kind: "number", text: number };
    return fail("a value: {…}, […], a \"string\", a number, true, false or null");
  };
  const tree = value(0);
  skip();
  if (at < text.length) fail("nothing after the value");
  return tree;
}

/**
 * Return what is wrong with a text, or null.
 * @param {string} text
 * @returns {JsonError | null}
 */
export function jsonError(text) {
  try {
    JSON.parse(text);
    return null;
  } catch {
    try {
      readJson(text);
      return null;
    } catch (error) {
      return /** @type {JsonError} */ (error);
    }
  }
}

/**
 * Parse an answer. Whole numbers that a float can't hold become BigInt, where the browser shows
 * their text.
 * @param {string} text
 * @returns {any}
 */
export function parseExact(text) {
  if (text.length > 1e6 || !/\d{16}/.test(text)) return JSON.parse(text);
  /** @type {any} */
  const reviver = (/** @type {string} */ _, /** @type {any} */ value, /** @type {any} */ context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source)
      ? BigInt(context.source)
      : value;
  return JSON.parse(text, reviver);
}
