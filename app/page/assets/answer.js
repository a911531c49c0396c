// @ts-check
/** An answer: how it ended, what to do, where its time went, what it holds. */

import { html } from "./preact.js";
import { Copy, save } from "./copy.js";
import { bytes, ms, percent, plural } from "./format.js";
import { JsonTree } from "./json_tree.js";

const LOG = "The server's log has the rest under this request's id.";
const TODO = {
  "no answer": "The server can't be reached, or it closed the connection before all was sent, as for a body above max_body.",
  broken: "Parts that came before are shown. The request's id tells more, if the server remembers it.",
  unauthorized: "Enter the API key at the top of the page.",
  invalid_request: "Correct what it names, and send it again.",
  invalid_input: "Send something else: this could not be read.",
  unsupported_media: "Choose a file of a type that it lists.",
  too_large: "Send something smaller, or raise the limit that it names.",
  deadline_exceeded: "Set a later deadline in Options. The request's id opens why it took so long.",
  backend_error: `The pipeline's own code failed. ${LOG}`,
  internal: `This is a bug in Penstock. ${LOG}`,
};

/** @param {any} props the `reply` of `ask`, what is `found` in it, and the `links` of `TryIt` */
export function Answer({ reply, found, links }) {
  const { status, id, value, text, running, parts, timing, problem } = reply;
  const isGood = status >= 200 && status < 300 && (running || !problem);
  const code = status ? problem?.code : "no answer";
  const how = isGood ? `${status} OK` : status ? `${problem?.status ?? ""} ${problem?.title ?? status}` : "No answer";
  return html`<section class="answer" aria-label="Answer">
    <p class="answer-head" role="status">
      <span class=${isGood ? "pill good" : "pill bad"}>${how}</span>
      <span>${running ? "still coming" : ms(reply.ms)}<span class="hint">${parts === null ? "" : `, ${plural(parts, "part")}`}${status ? `, ${bytes(text.length)}` : ""}</span></span>
    </p>
    ${id && html`<p class="answer-head"><a class="mono cut" href=${`#/requests/${encodeURIComponent(id)}`} title="Why did it take so long?">${id}</a><${Copy} what="id" text=${id} /></p>`}
    ${!isGood && html`<div class="card problem" role="alert"><p dir="auto">${problem?.detail ?? text.slice(0, 500)}</p>
      <p class="hint"><code>${code}</code> ${TODO[code] ?? (status === 429 || status > 501 ? "Send it again in a while." : "")} ${reply.retryAfter && `Retry after ${reply.retryAfter} s.`}</p></div>`}
    ${timing.length > 0 && html`<${Timings} timing=${timing} />`}
    ${found && html`<${Findings} found=${found} />`}
    ${(isGood || parts > 0) && (value === undefined ? html`<pre class="code">${text.slice(0, 10_000)}</pre>` : html`<${JsonTree} value=${value} links=${links} />`)}
    ${text && status > 0 && html`<div class="actions start"><${Copy} what="answer" text=${text} /><button class="button quiet small" onClick=${() => save("answer.json", text)}>Save</button></div>`}
  </section>`;
}

function Timings({ timing }) {
  const most = Math.max(...timing.map(({ queue, run }) => queue + run), 0.001);
  const bar = (name, part) => html`<i class=${name} style=${{ width: `${(100 * part) / most}%` }}></i>`;
  return html`<table class="timings">
    <caption class="hint"><i class="queued"></i> in the queue <i class="ran"></i> running, per node</caption>
    ${timing.map(({ node, queue, run, batch }) => html`<tr>
      <th scope="row" class="cut">${node}</th>
      <td><div class="split" role="img" title=${`${ms(queue)} in the queue, ${ms(run)} running`}>${bar("queued", queue)}${bar("ran", run)}</div></td>
      <td class="num">${ms(queue + run)}</td><td class="num hint">batch of ${batch}</td></tr>`)}
  </table>`;
}

function Findings({ found: { rankings, pictures } }) {
  return html`${rankings.slice(0, 4).map((rows) => html`<table class="ranking">${rows.slice(0, 10).map(({ label, score }) => html`<tr>
      <th scope="row"><bdi>${label.slice(0, 80)}</bdi></th>
      <td><div class="bar"><i style=${{ width: `${100 * Math.max(0, Math.min(1, score))}%` }}></i></div></td>
      <td class="num">${score > 1 ? score : percent(score)}</td></tr>`)}</table>`)}
    ${pictures.slice(0, 4).map((url) => html`<div class="canvas"><img src=${url} alt="A picture of the answer" /></div>`)}`;
}
