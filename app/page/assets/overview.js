// @ts-check
/** The centre of the page: how a pipeline feels, its graph, a node's details, its charts. */
import { html, useCallback, useState } from "./preact.js";
import { api } from "./api.js";
import { Charts } from "./charts.js";
import { Details, GraphView } from "./graph.js";
import { filled, startOf } from "./inputs.js";
import { MoodMark } from "./mood.js";
import { planOf, portsOf } from "./request.js";
import { SNIPPETS } from "./snippets.js";
import { feeling, MOODS, progress, untouched } from "./status.js";

export function Overview({ pipeline, columns, time_s }) {
  const [open, setOpen] = useState(null);
  const close = useCallback(() => {
    setOpen(null);
    document.getElementById(`node-${open}`)?.focus();
  }, [open]);
  const node = pipeline.graph?.nodes.find(({ name }) => name === open);
  return html`
    <${Heading} ...${pipeline} sentence=${feeling(pipeline)} />
    ${pipeline.graph?.nodes.length > 0 && html`<${GraphView} pipeline=${pipeline} open=${open} onOpen=${setOpen} />`}
    ${node && html`<${Details} node=${node} live=${pipeline.nodes.find(({ name }) => name === open)} onClose=${close} />`}
    ${untouched(pipeline) ? pipeline.mood !== "down" && pipeline.inputs && html`<${NoTraffic} pipeline=${pipeline} />` : html`<${Charts} columns=${columns} time_s=${time_s} />`}`;
}

function Heading({ name, version, versions = [], mood, sentence, description, loading }) {
  const others = versions.filter((one) => one !== version).join(", ");
  return html`<header class="heading">
    <div><h1 class="cut" title=${name}>${name}</h1>
      ${version && html`<span class="pill">version ${version}${others && `, also ${others}`}</span>`}</div>
    <p class="feeling ${mood}" title=${sentence}><span class="mood ${mood}"><${MoodMark} mood=${mood} /> <b>${MOODS[mood]}</b></span> ${sentence}</p>
    <p class="hint cut" title=${description}>${description}</p>
    ${loading.length > 0 && html`<${Progress} loading=${loading} mood=${mood} />`}
  </header>`;
}

/** A load, of which the sentence tells, or a reload. */
function Progress({ loading, mood }) {
  const percent = /(\d+) ?%/.exec(loading[0].text)?.[1];
  return html`<div class="load">
    ${mood !== "loading" && html`<p>Reloading <span class="hint">${loading.map(progress).join("; ")}</span></p>`}
    ${percent && html`<p class="bar"><i style=${{ width: `${percent}%` }}></i></p>`}</div>`;
}

function NoTraffic({ pipeline }) {
  const { name, mood, stream_input, streams } = pipeline;
  const ports = portsOf(pipeline);
  const plan = planOf(pipeline, filled(ports, startOf(ports)), { events: Boolean(stream_input || streams) });
  const { code } = SNIPPETS.curl(plan, { url: document.baseURI, key: Boolean(api.key) });
  // The panel with its form may be beside, below or behind the graph.
  const focus = () => setTimeout(() => document.querySelector(".try :is(input, textarea, button)")?.["focus"]());
  return html`<section class="empty card">
    <p>No traffic yet.${mood === "idle" && " Try it here, or from a shell:"}</p>
    <code class="code">${code}</code>
    <p><a class="button primary" href="#/p/${encodeURIComponent(name)}/try" onClick=${focus}>Try it</a></p>
  </section>`;
}
