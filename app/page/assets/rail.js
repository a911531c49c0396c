// @ts-check
/** The list of pipelines: how each feels, its rate and its latency. */
import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { ms, rate } from "./format.js";
import { MoodMark } from "./mood.js";
import { MOODS } from "./status.js";

const MANY = 12; // more pipelines than this get a field to search in

/**
 * @param {{pipelines: import("./status.js").Pipeline[], chosen: string | null, tab: string}} props
 *   `tab` is kept when another pipeline is chosen
 */
export function Rail({ pipelines, chosen, tab }) {
  const [text, setText] = useState("");
  const wanted = text.trim().toLowerCase();
  const found = pipelines.filter(({ name }) => name.toLowerCase().includes(wanted));
  return html`<nav class="rail" aria-label="Pipelines">
    ${pipelines.length > MANY && html`<input class="field" type="search" aria-label="Find a pipeline"
      placeholder="Find one of ${pipelines.length}" value=${text}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)} />`}
    <ul>${found.map((pipeline) => html`<li key=${pipeline.name}><${Entry} pipeline=${pipeline}
      chosen=${pipeline.name === chosen} tab=${tab} /></li>`)}</ul>
    ${found.length === 0 && html`<p class="hint">No pipeline is called so.</p>`}
  </nav>`;
}

/** @param {{pipeline: import("./status.js").Pipeline, chosen: boolean, tab: string}} props */
function Entry({ pipeline, chosen, tab }) {
  const { name, mood, succeeded_per_s, latency_ms } = pipeline;
  const path = `#/p/${encodeURIComponent(name)}${tab === "graph" ? "" : `/${tab}`}`;
  const link = useRef();
  useEffect(() => {
    if (chosen) link.current.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosen]);
  const busy = mood === "calm" || mood === "busy" || mood === "refusing";
  return html`<a href=${path} ref=${link} title=${name} aria-current=${chosen ? "page" : undefined}>
    <${MoodMark} mood=${mood} /><span class="name cut">${name}</span>
    <span class="live"><span>${MOODS[mood]}</span>${busy && html`<span>${rate(succeeded_per_s)}</span><span>${ms(latency_ms?.p50)}</span>`}</span>
  </a>`;
}
