// @ts-check
/** The centre of the page: how a pipeline feels, its graph, a node's details, its charts. */
import { html, useCallback, useState } from "./vendor/htm/standalone.module.js";
import { Charts } from "./charts.js";
import { Details, GraphView } from "./graph.js";
import { MoodMark } from "./mood.js";
import { feeling, MOODS, progress, total } from "./status.js";

/** @typedef {import("./status.js").Pipeline} Pipeline */

/**
 * @param {{pipeline: Pipeline, columns: import("./history.js").Columns, time_s: number}} props
 */
export function Overview({ pipeline, columns, time_s }) {
  const [open, setOpen] = useState(/** @type {string | null} */ (null));
  const close = useCallback(() => {
    const card = open === null ? null : document.getElementById(`node-${open}`);
    setOpen(null);
    card?.focus();
  }, [open]);
  const node = pipeline.graph?.nodes.find((one) => one.name === open);
  return html`
    <${Heading} pipeline=${pipeline} />
    ${pipeline.graph && html`<${GraphView} pipeline=${pipeline} open=${open} onOpen=${setOpen} />`}
    ${node && html`<${Details} node=${node} live=${pipeline.nodes.find((one) => one.name === open)} onClose=${close} />`}
    ${quiet(pipeline, columns)
      ? html`<${NoTraffic} pipeline=${pipeline} />`
      : html`<${Charts} columns=${columns} time_s=${time_s} />`}`;
}

/** @param {{pipeline: Pipeline}} props */
function Heading({ pipeline }) {
  const { name, version, versions = [], mood, description } = pipeline;
  return html`<header class="heading">
    <div class="name"><h1 class="cut" title=${name}>${name}</h1>
      ${version && html`<span class="pill">${versions.length > 1 ? `version ${version}, also ${versions.filter((one) => one !== version).join(", ")}` : `version ${version}`}</span>`}</div>
    <p class="feeling ${mood}" title=${feeling(pipeline)}><span class="mood ${mood}"><${MoodMark} mood=${mood} /> <b>${MOODS[mood]}</b></span> ${feeling(pipeline)}</p>
    <p class="hint cut" title=${description}>${description}</p>
    <${Progress} pipeline=${pipeline} />
  </header>`;
}

/**
 * A load or a reload in progress.
 * @param {{pipeline: Pipeline}} props
 */
function Progress({ pipeline: { loading, mood } }) {
  if (!loading.length) return null;
  const percent = /(\d+) ?%/.exec(loading[0].text)?.[1];
  const more = loading.length > 1 ? `, and ${loading.length - 1} more` : "";
  return html`<div class="load">
    ${mood !== "loading" && html`<p>Reloading <span class="hint">${progress(loading[0])}${more}</span></p>`}
    <p class="bar"><i class=${percent ? "" : "some"} style=${{ width: `${percent ?? 30}%` }}></i></p></div>`;
}

/**
 * Whether there is nothing to chart.
 * @param {Pipeline} pipeline
 * @param {import("./history.js").Columns} columns
 */
function quiet(pipeline, columns) {
  const { succeeded, failed, refused, in_flight } = pipeline;
  return !(succeeded || in_flight || total(failed) || total(refused)) && !columns.answered.some(Boolean);
}

/** @type {Record<string, string>} */
const CURLS = {
  image: "-T photo.jpg",
  text: "-d 'some text' -H 'Content-Type: text/plain'",
  json: "-d '{}' -H 'Content-Type: application/json'",
};

/** Move to the panel, which may be beside, below or behind the graph. */
function focusTry() {
  setTimeout(() => /** @type {HTMLElement | null} */ (document.querySelector("#panel-try :is(input, textarea, button)"))?.focus());
}

/** @param {{pipeline: Pipeline}} props */
function NoTraffic({ pipeline }) {
  const { name, inputs = [], mood } = pipeline;
  const path = encodeURIComponent(name);
  const url = new URL(`predict/${path}`, document.baseURI).href;
  const options = inputs.length > 1 ? "-F …" : CURLS[inputs[0]?.kind ?? "image"] ?? "-T input";
  return html`<section class="empty card">
    <p>No traffic yet.${mood === "down" || mood === "loading" ? "" : " Try it here, or from a shell:"}</p>
    <code class="code">curl ${options} ${url}</code>
    <p><a class="button primary" href="#/p/${path}/try" onClick=${focusTry}>Try it</a></p>
  </section>`;
}
