// @ts-check
/** JSON to unfold. Only what is open is in the page, so that 10 MB do not freeze the tab. */

import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { bytes, count, plural } from "./format.js";
import { below } from "./shapes.js";

const LINE = 64; // characters of a value that is shown on one line
const ROWS = 100;
const SHORT = 400; // characters of a string
const LONG = 50_000;

/**
 * @typedef {{active: string, shown: string, linked: Set<string>, onActive: (path: string) => void}}
 *   Links Paths: `active` is marked, `shown` is unfolded and scrolled to, `linked` can be active.
 */

/** @param {{value: any, links: Links}} props */
export const JsonTree = ({ value, links }) => html`<ul class="json mono"><${Row} name="" at="" depth=${0} value=${value} links=${links} /></ul>`;

function Row({ name, at, depth, value, links }) {
  const [asked, ask] = useState(/** @type {boolean | null} */ (null));
  const [most, more] = useState(ROWS);
  const own = useRef(null);
  const isAbove = links.shown.startsWith(`${at}/`);
  const isBox = value !== null && typeof value === "object";
  const isList = Array.isArray(value);
  const short = isBox && at ? oneLine(value, LINE) : null;
  const isOpen = asked ?? (isAbove || (depth < 2 && !(isList && (value.length > 20 || typeof value[0] === "number"))));
  useEffect(() => {
    if (isAbove) ask(null);
    if (at && links.shown === at) own.current.scrollIntoView({ block: "nearest" });
  }, [links.shown]);
  const key = name && html`<span class="key">${name}</span>: `;
  const set = (path) => () => links.onActive(path);
  const mark = links.linked.has(at) && { tabindex: 0, onMouseEnter: set(at), onMouseLeave: set(""), onFocus: set(at), onBlur: set("") };
  const item = (content) => html`<li ref=${own} data-active=${links.active === at && at !== ""} ...${mark}>${content}</li>`;
  if (!isBox) return item([key, html`<${Leaf} value=${value} />`]);
  if (short !== null) return item([key, short]);
  const fold = (words) => html`<button class="fold" aria-expanded=${isOpen} onClick=${() => ask(!isOpen)}>${key}<span class=${isOpen ? "hint" : ""}>${words}</span></button>`;
  if (!isOpen) return item(fold(summary(value)));
  const keys = isList ? value : Object.keys(value);
  const next = isAbove && isList ? Number(links.shown.slice(at.length + 1).split("/")[0]) + 1 : 0;
  const end = Math.min(keys.length, Math.max(most, next));
  const rows = keys.slice(0, end).map((_, index) => {
    const one = isList ? String(index) : keys[index];
    return html`<${Row} key=${one} name=${one} at=${below(at, one)} depth=${depth + 1} value=${value[one]} links=${links} />`;
  });
  return item([
    at && fold(plural(keys.length, isList ? "item" : "key")),
    html`<ul>${rows}</ul>`,
    end < keys.length && html`<button class="button small" onClick=${() => more(end + ROWS)}>Show ${Math.min(ROWS, keys.length - end)} more of ${count(keys.length)}</button>`,
  ]);
}

function Leaf({ value }) {
  const [isLong, lengthen] = useState(false);
  if (typeof value !== "string") return String(value);
  const shown = value.slice(0, isLong ? LONG : SHORT);
  const isCut = shown.length < value.length;
  const words = isLong ? `The first ${count(LONG)} of ${bytes(value.length)}: save it to see all` : `Show more of ${bytes(value.length)}`;
  return html`<bdi class="string">"${shown}${isCut ? "…" : '"'}</bdi>
    ${isCut && html` <button class="button small" disabled=${isLong} onClick=${() => lengthen(true)}>${words}</button>`}`;
}

/** Return a value on one line; null: it is longer than `most`. */
function oneLine(value, most) {
  if (typeof value === "string") return value.length < most ? JSON.stringify(value) : null;
  if (value === null || typeof value !== "object") return String(value);
  const isList = Array.isArray(value);
  if ((isList ? value : Object.keys(value)).length > most / 2) return null;
  let text = "";
  for (const [key, one] of Object.entries(value)) {
    const part = oneLine(one, most - text.length);
    if (part === null) return null;
    text += `${text && ", "}${isList ? "" : `${key}: `}${part}`;
    if (text.length > most) return null;
  }
  return isList ? `[${text}]` : `{${text}}`;
}

/** What a folded value holds. */
function summary(value) {
  const isList = Array.isArray(value);
  const all = isList ? value : Object.keys(value);
  const first = all.slice(0, 4).map((one) => (one === null || typeof one !== "object" ? String(one).slice(0, 16) : Array.isArray(one) ? "[…]" : "{…}"));
  const words = plural(all.length, isList ? (typeof all[0] === "number" ? "number" : "item") : "key");
  return `${isList ? `[${words}]` : `{${words}}`} ${first.join(", ")}${all.length > 4 ? ", …" : ""}`;
}
