// @ts-check
/** The processes of a server that has several: a button in the top bar, and a dialog with all of them. */
import { html, useEffect, useRef, useState } from "./preact.js";
import { bytes, count, plural } from "./format.js";
import { MoodMark } from "./mood.js";

const COLUMNS = ["Process", "State", "Connections", "Processors", "Memory", "Restarts", "Id"];
const MARKS = { up: "calm", starting: "loading", "not answering": "down" };

export function Processes({ processes }) {
  const [open, setOpen] = useState(false);
  const down = processes.filter(({ state }) => state !== "up").length;
  return html`<button class="button quiet small" title="The processes of this server" onClick=${() => setOpen(true)}>
      ${plural(processes.length, "process", "processes")}${down > 0 && html`, <b class="mood down">${count(down)} down</b>`}</button>
    ${open && html`<${Dialog} processes=${processes} onClose=${() => setOpen(false)} />`}`;
}

function Dialog({ processes, onClose }) {
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog class="wide" ref=${dialog} aria-labelledby="processes-title" onClose=${onClose}>
    <form method="dialog">
      <h2 id="processes-title">Processes</h2>
      <div class="instances"><table>
        <thead><tr>${COLUMNS.map((name, index) => html`<th key=${name} class=${index > 1 && "num"}>${name}</th>`)}</tr></thead>
        <tbody>${processes.map((one) => html`<tr key=${one.name}>
          <td>${one.name}</td>
          <td><${MoodMark} mood=${MARKS[one.state]} /> ${one.state}</td>
          <td class="num">${count(one.connections)}</td>
          <td class="num">${one.cpu?.toFixed(2) ?? "–"}</td>
          <td class="num">${bytes(one.rss_bytes)}</td>
          <td class="num">${count(one.restarts)}</td>
          <td class="num">${one.pid || "–"}</td></tr>`)}</tbody></table></div>
      <p class="hint">Processors: how many were used in the last second. Memory that processes share counts in each.</p>
      <div class="actions"><button class="button">Close</button></div>
    </form>
  </dialog>`;
}
