// @ts-check
/** The top bar: how the server is, the key, the theme, the API's docs. */
import { html, useState } from "./vendor/htm/standalone.module.js";
import { bytes, duration, plural } from "./format.js";
import { Key } from "./key.js";
import { setTheme, theme } from "./theme.js";

/**
 * @param {{status: import("./status.js").Status | null, link: import("./api.js").Link}} props
 */
export function TopBar({ status, link }) {
  return html`<header class="top">
    <a class="wordmark" href="#/" title=${status ? `Penstock ${status.version}` : "Penstock"}><${Mark} />penstock</a>
    <div class="facts"><${State} status=${status} link=${link} />
      ${status && html`<span class="up">up ${duration(status.uptime_s)}</span><${Memory} memory=${status.memory} />`}</div>
    <div class="tools"><${Key} /><${Theme} /><a class="button quiet" href="docs">API docs</a></div>
  </header>`;
}

/** A pipe that leads down to a turbine. */
function Mark() {
  return html`<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M1 5h5c3.5 0 4 3 4 5" fill="none" stroke="var(--ink)" stroke-width="3" stroke-linecap="round" />
    <circle cx="11" cy="13.5" r="4.5" fill="none" stroke="var(--water)" stroke-width="2.5" /></svg>`;
}

/**
 * @param {{status: import("./status.js").Status | null, link: import("./api.js").Link}} props
 */
function State({ status, link }) {
  const [mark, text] = stateOf(status, link);
  return html`<span class="state" title=${link.phase === "lost" ? link.detail : status?.reason ?? ""}>
    <svg class="mood ${mark}" viewBox="0 0 12 12" aria-hidden="true">${
      mark === "calm" ? html`<circle cx="6" cy="6" r="4.75" fill="currentColor" />` : html`<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="2" />`}</svg>
    <span class="cut">${text}</span></span>`;
}

/**
 * @param {import("./status.js").Status | null} status
 * @param {import("./api.js").Link} link
 * @returns {[string, string]}
 */
function stateOf(status, link) {
  if (link.phase === "locked") return ["idle", "API key needed"];
  if (link.phase === "lost") return ["busy", "Disconnected, trying again"];
  if (!status) return ["idle", "Connecting"];
  const pipelines = plural(status.pipelines.length, "pipeline");
  return status.ready ? ["calm", `Ready, ${pipelines}`] : ["down", `Not ready, ${pipelines}`];
}

/** @param {{memory: import("./status.js").Status["memory"]}} props */
function Memory({ memory }) {
  const { used_bytes, limit_bytes, refused } = memory;
  return html`<span title="Bytes that requests hold now${limit_bytes ? ", and the most they may" : ""}">
    ${bytes(used_bytes)}${limit_bytes ? ` of ${bytes(limit_bytes)}` : ""} in requests${refused ? `, ${plural(refused, "refusal")}` : ""}</span>`;
}

/** @type {import("./theme.js").Theme[]} */
const ORDER = ["auto", "light", "dark"];

function Theme() {
  const [now, setNow] = useState(theme());
  const next = ORDER[(ORDER.indexOf(now) + 1) % ORDER.length];
  const choose = () => {
    setTheme(next);
    setNow(next);
  };
  return html`<button class="button quiet theme" onClick=${choose} aria-label="Theme: ${now}. Change to ${next}" title="Theme: ${now}">
    <svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="1.5" />
      <path d="M8 2a6 6 0 0 ${now === "light" ? "0 0 0" : "1 0 12"}Z" fill="currentColor" />${now === "dark" && html`<circle cx="8" cy="8" r="6" fill="currentColor" />`}</svg>
    <span>${now[0].toUpperCase() + now.slice(1)}</span></button>`;
}
