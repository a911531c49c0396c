// @ts-check
/** An answer: how it ended, what to do, where its time went, what it holds. */

import { html, useState } from "./vendor/htm/standalone.module.js";
import { copyText, save } from "./copy.js";
import { bytes, ms, percent, plural } from "./format.js";
import { JsonTree } from "./json_tree.js";

/**
 * @typedef {{node: string, queue: number, run: number, batch: number}} Timing In milliseconds.
 * @typedef {{status: number, id: string, ms: number, text: string, value: any, isJson: boolean,
 *   timing: Timing[], retryAfter: string, parts: number | null, running: boolean}} Reply
 *   `status` 0: no answer came. `parts`: of an answer in events, how many came.
 */

const TODO = /** @type {Record<string, string>} */ ({
  unauthorized: "Enter the API key at the top of the page.",
  forbidden: "The operator of this server has to allow it.",
  invalid_request: "Correct what the text names, and send it again.",
  invalid_input: "Send another input: this one could not be used.",
  unsupported_media: "Choose a file of a type that the text lists.",
  too_large: "Send something smaller, or raise the limit that the text names.",
  queue_full: "More comes than can be answered. Send it again later.",
  overloaded: "More comes than can be answered. Send it again later.",
  memory_full: "Requests hold all the memory they may. Send it again later.",
  not_ready: "The pipeline is loading or down; its state at the top says which.",
  deadline_exceeded: "Give it a longer deadline, or see why it took so long.",
  backend_error: "The pipeline's own code failed. The server's log has the rest under this request id.",
  internal: "This is a bug in Penstock. The server's log has the rest under this request id.",
});

/** Read a Server-Timing header: the milliseconds and rows of each node. @param {string | null} header @returns {Timing[]} */
export function timingOf(header) {
  /** @type {Map<string, Timing>} */
  const nodes = new Map();
  for (const [, what, node, duration, batch] of (header || "").matchAll(/(queue|run)\.([^;,]+);dur=([\d.]+)(?:;desc="batch (\d+)")?/g)) {
    const found = nodes.get(node) ?? { node, queue: 0, run: 0, batch: 0 };
    nodes.set(node, found);
    if (what === "queue") found.queue += Number(duration);
    else Object.assign(found, { run: found.run + Number(duration), batch: Number(batch ?? 0) });
  }
  return [...nodes.values()];
}

/** @param {{reply: Reply, found: import("./shapes.js").Found | null, links: any}} props */
export function Answer({ reply, found, links }) {
  const [said, say] = useState("");
  const { status, id, value, text } = reply;
  const isGood = status >= 200 && status < 300 && !value?.code;
  const problem = isGood ? null : value;
  const copy = async (/** @type {string} */ what, /** @type {string} */ word) => say((await copyText(what)) ? `${word} copied.` : "This browser did not copy it.");
  const wait = reply.retryAfter && ` (Retry-After: ${reply.retryAfter} s)`;
  return html`<section class="answer" aria-label="Answer">
    <p class="answer-head" role="status">
      <span class=${isGood ? "pill good" : "pill bad"}>${status || "no answer"} ${isGood ? "OK" : problem?.title ?? ""}</span>
      <span>${reply.running ? "…" : ms(reply.ms)} <span class="hint">in all${reply.parts === null ? "" : `, ${plural(reply.parts, "part")}`}, ${bytes(text.length)}</span></span>
    </p>
    ${id && html`<p class="answer-id"><a class="mono cut" href=${`#/requests/${encodeURIComponent(id)}`} title="Why did it take so long?">${id}</a>
      <button class="button quiet small" onClick=${() => copy(id, "Request id")}>Copy id</button></p>`}
    ${!isGood && !reply.running && html`<div class="card problem" role="alert">
      <p dir="auto">${problem?.detail ?? (status ? text.slice(0, 500) : "The server can't be reached, or it closed the connection before all was sent (a body above max_body).")}</p>
      <p class="hint">${problem?.code && html`<span class="mono">${problem.code}</span>: `}${TODO[problem?.code] ?? (status ? "" : "Is the server still running?")}${wait}</p>
    </div>`}
    ${reply.timing.length > 0 && html`<${Timings} timing=${reply.timing} />`}
    ${found && html`<${Findings} found=${found} />`}
    ${reply.isJson ? html`<${JsonTree} value=${value} links=${links} />` : isGood && html`<pre class="code" dir="auto">${text.slice(0, 10_000)}</pre>`}
    ${text && html`<div class="actions start">
      <button class="button small" onClick=${() => copy(text, "Answer")}>Copy answer</button>
      <button class="button small" onClick=${() => save("answer.json", text)}>Save</button>
      <span class="hint" role="status">${said}</span></div>`}
  </section>`;
}

/** @param {{timing: Timing[]}} props */
function Timings({ timing }) {
  const most = Math.max(...timing.map(({ queue, run }) => queue + run), 0.001);
  const width = (/** @type {number} */ part) => ({ width: `${(100 * part) / most}%` });
  return html`<table class="timings">
    <caption class="hint"><i class="queued"></i> in the queue <i class="ran"></i> running, per node</caption>
    ${timing.map(({ node, queue, run, batch }) => html`<tr key=${node}>
      <th scope="row" class="cut">${node}</th>
      <td><div class="split" role="img" aria-label=${`${ms(queue)} in the queue, ${ms(run)} running`}><i class="queued" style=${width(queue)}></i><i class="ran" style=${width(run)}></i></div></td>
      <td class="num" title=${`${ms(queue)} + ${ms(run)}`}>${ms(queue + run)}</td>
      <td class="num hint">batch of ${batch}</td>
    </tr>`)}
  </table>`;
}

/** @param {{found: import("./shapes.js").Found}} props */
function Findings({ found }) {
  return html`${found.rankings.slice(0, 4).map(({ path, rows }) => html`<table class="ranking" key=${path}>
      ${rows.slice(0, 10).map(({ label, score }) => html`<tr><th scope="row"><bdi>${label.slice(0, 80)}</bdi></th>
        <td><div class="bar"><i style=${{ width: `${Math.max(0, Math.min(1, score)) * 100}%` }}></i></div></td>
        <td class="num">${score > 1 ? score : percent(score)}</td></tr>`)}
    </table>`)}
    ${found.vectors.slice(0, 4).map(({ path, values }) => html`<p class="hint" key=${path}><span class="mono">${path.slice(1)}</span>:
      ${plural(values.length, "number")}, norm ${Math.hypot(...values.slice(0, 50_000)).toPrecision(3)}; the first: ${values.slice(0, 4).map((one) => one.toPrecision(3)).join(", ")}, …</p>`)}
    ${found.pictures.map(({ path, url }) => html`<figure class="try-file" key=${path}><div class="canvas"><img src=${url} alt=${`The picture ${path} of the answer`} /></div></figure>`)}`;
}
