// @ts-check
/** Says where a text is not JSON. */

const CHARACTERS = /([^"\\\u0000-\u001f]|\\(["\\/bfnrt]|u[\da-fA-F]{4}))*/y;
const WORD = /true|false|null|-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;

/**
 * Return what is wrong with a text; null if it is JSON. `caret`: the fault's place in `excerpt`.
 * @param {string} text
 */
export function jsonError(text) {
  try {
    JSON.parse(text);
    return null;
  } catch {
    const { index, expected } = firstFault(text);
    const lines = text.slice(0, index).split("\n");
    const column = lines.at(-1).length;
    const found = index < text.length ? `found ${JSON.stringify(text[index])}` : "the text ends";
    const excerpt = text.split("\n")[lines.length - 1].slice(Math.max(0, column - 20), column + 20);
    return { index, excerpt, caret: Math.min(column, 20), message: `Line ${lines.length}, column ${column + 1}: ${found}, expected ${expected}.` };
  }
}

function firstFault(text) {
  let index = 0;
  const take = (pattern) => {
    pattern.lastIndex = index;
    const { length } = pattern.exec(text)?.[0] ?? "";
    index += length;
    return length;
  };
  const skip = () => take(/[ \t\r\n]*/y);
  const need = (character, expected) => {
    skip();
    if (text[index] !== character) throw expected;
    index += 1;
  };
  const string = (expected) => {
    need('"', expected);
    take(CHARACTERS);
    if (text[index] !== '"') throw text[index] === "\\" ? "a known escape, such as \\n" : 'the end of the string (")';
    index += 1;
  };
  const member = () => {
    string("a key in double quotes");
    need(":", '":" after the key');
    value();
  };
  const several = (end, one) => {
    let isFirst = true;
    do {
      index += 1;
      skip();
      if (!isFirst || text[index] !== end) one();
      isFirst = false;
      skip();
    } while (text[index] === ",");
    need(end, `"," or "${end}"`);
  };
  const value = () => {
    skip();
    if (text[index] === "[") several("]", value);
    else if (text[index] === "{") several("}", member);
    else if (text[index] === '"') string("");
    else if (!take(WORD)) throw 'a value: {…}, […], "text", a number, true, false or null';
  };
  try {
    value();
    skip();
    return { index, expected: "nothing after the value" };
  } catch (expected) {
    return { index, expected: typeof expected === "string" ? expected : "fewer levels" };
  }
}
