// @ts-check
/** JSON to unfold. Only what is open is in the page, so that 10 MB do not freeze the tab. */

import { html, useEffect, useRef, useState } from "./preact.js";
import { bytes, count, plural } from "./format.js";
import { below } from "./shapes.js";

const LINE = 64; // characters of a value on one line
const ROWS = 100;
const SHORT = 400; // characters of a string
const LONG = 50_000;

/** @param {{value: any, links: any}} props `links`: see `TryIt` */
export const JsonTree = ({ value, links }) => html`<ul class="json mono"><${Row} name="" at="" depth=${0} value=${value} links=${links} /></ul>`;

function Row({ name, at, depth, value, links }) {
  const [asked, ask] = useState(null);
  const [most, more] = useState(ROWS);
  const own = useRef(null);
  const isAbove = links.shown.startsWith(`${at}/`);
  const isList = Array.isArray(value);
  const isOpen = asked ?? (isAbove || (at && links.shown === at) || (depth < 2 && !(isList && (value.length > 20 || typeof value[0] === "number"))));
  useEffect(() => {
    if (isAbove || links.shown === at) ask(null);
    if (at && links.shown === at) own.current.scrollIntoView({ block: "nearest" });
  }, [links.shown]);
  const set = (path) => () => links.onActive(path);
  const mark = links.linked.has(at) && { tabindex: 0, onMouseEnter: set(at), onMouseLeave: set(""), onFocus: set(at), onBlur: set("") };
  const item = (...content) => html`<li ref=${own} data-active=${at !== "" && links.active === at} ...${mark}>${content}</li>`;
  const key = name && html`<span class="key">${name}: </span>`;
  if (typeof value === "string") return item(key, html`<${Text} value=${value} />`);
  const line = at || value === null || typeof value !== "object" ? oneLine(value, LINE) : null;
  if (line !== null) return item(key, line);
  const fold = (words) => html`<button class="fold" aria-expanded=${isOpen} onClick=${() => ask(!isOpen)}>${key}${words}</button>`;
  const keys = isList ? value : Object.keys(value);
  const size = plural(keys.length, isList ? (typeof value[0] === "number" ? "number" : "item") : "key");
  if (!isOpen) {
    const first = keys.slice(0, 3).map((one) => (isList ? oneLine(one, 16) : `${one}: ${oneLine(value[one], 24) ?? "…"}`) ?? "…");
    return item(fold(`${isList ? `[${size}] ` : "{"}${first.join(", ")}${keys.length > 3 ? ", …" : ""}${isList ? "" : "}"}`));
  }
  const next = isAbove && isList ? Number(links.shown.slice(at.length + 1).split("/")[0]) + 1 : 0;
  const end = Math.min(keys.length, Math.max(most, next));
  const rows = keys.slice(0, end).map((one, index) => {
    const name = isList ? String(index) : one;
    return html`<${Row} key=${name} name=${name} at=${below(at, name)} depth=${depth + 1} value=${value[name]} links=${links} />`;
  });
  return item(
    at && fold(html`<span class="hint">${size}</span>`),
    html`<ul>${rows}</ul>`,
    end < keys.length && html`<button class="button small" onClick=${() => more(end + ROWS)}>Show more of ${count(keys.length)}</button>`,
  );
}

function Text({ value }) {
  const [most, lengthen] = useState(SHORT);
  const isCut = value.length > most;
  return html`<bdi class="string">"${value.slice(0, most)}${isCut ? "…" : '"'}</bdi>
    ${isCut && html` <button class="button small" disabled=${most === LONG} onClick=${() => lengthen(LONG)}>${most === LONG ? "Save it to see all" : "Show more"} of ${bytes(value.length)}</button>`}`;
}

/** Return a value on one line; null: it is longer than `most`. */
function oneLine(value, most) {
  if (typeof value === "string") return value.length < most ? JSON.stringify(value) : null;
  if (value === null || typeof value !== "object") return String(value);
  const isList = Array.isArray(value);
  if ((isList ? value : Object.keys(value)).length > most / 2) return null;
  let text = "";
  for (const key of Object.keys(value)) {
    const part = oneLine(value[key], most - text.length);
    text += `${text && ", "}${isList ? "" : `${key}: `}${part}`;
    if (part === null || text.length > most) return null;
  }
  return isList ? `[${text}]` : `{${text}}`;
}
