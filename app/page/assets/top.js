// @ts-check
/** The top bar: how the server is, the key, the theme, the API's docs. */
import { html, useState } from "./preact.js";
import { bytes, duration, plural } from "./format.js";
import { Key } from "./key.js";
import { MoodMark } from "./mood.js";
import { Processes } from "./processes.js";
import { chooseTheme } from "./theme.js";

export function TopBar({ status, link }) {
  const [mood, text] = stateOf(status, link.phase);
  return html`<header class="top">
    <a class="wordmark" href="#/" title="Penstock ${status?.version ?? ""}"><svg viewBox="0 0 20 20" aria-hidden="true">
      <path d="M1 5h5c3.5 0 4 3 4 5" stroke="var(--ink)" /><circle cx="11" cy="13.5" r="4.5" stroke="var(--water)" /></svg>penstock</a>
    <div class="facts">
      <span class="state" title=${link.detail || status?.reason}><${MoodMark} mood=${mood} /><span class="cut">${text}</span></span>
      ${status && html`<span class="up">up ${duration(status.uptime_s)}</span>
        ${status.processes.length > 0 && html`<${Processes} processes=${status.processes} />`}<${Memory} ...${status.memory} />`}</div>
    <div class="tools"><${Key} /><${Theme} /><a class="button quiet" href="docs">API docs</a></div>
  </header>`;
}

function stateOf(status, phase) {
  if (phase === "locked") return ["idle", "API key needed"];
  if (phase === "lost") return ["loading", "Disconnected, trying again"];
  if (phase === "barred") return ["idle", "No access to /status"];
  if (!status) return ["idle", "Connecting"];
  const down = status.pipelines.filter(({ mood }) => mood === "down").length;
  const pipelines = plural(status.pipelines.length, "pipeline") + (down ? `, ${down} down` : "");
  return status.ready ? ["calm", `Ready, ${pipelines}`] : ["down", `Not ready, ${pipelines}`];
}

function Memory({ used_bytes, limit_bytes, refused }) {
  const limit = limit_bytes ? ` of ${bytes(limit_bytes)}` : "";
  return html`<span class="cut" title="What requests hold in memory now, and may hold at most">
    ${bytes(used_bytes)}${limit} in requests${refused ? `, ${plural(refused, "refusal")}` : ""}</span>`;
}

const THEMES = ["auto", "light", "dark"];

function Theme() {
  const [now, setNow] = useState(() => chooseTheme());
  const next = THEMES[(THEMES.indexOf(now) + 1) % 3];
  return html`<button class="button quiet theme" onClick=${() => setNow(chooseTheme(next))}
    aria-label="Theme: ${now}. Change to ${next}" title="Theme: ${now}">
    <svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="6" fill=${now === "dark" ? "currentColor" : "none"} stroke="currentColor" stroke-width="1.5" />
      ${now === "auto" && html`<path d="M8 2a6 6 0 0 1 0 12Z" fill="currentColor" />`}</svg><span>${now}</span></button>`;
}
