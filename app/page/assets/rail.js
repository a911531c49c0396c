// @ts-check
/** The list of pipelines: how each feels, its rate and its latency. */
import { html, useEffect, useRef, useState } from "./preact.js";
import { ms, rate } from "./format.js";
import { MoodMark } from "./mood.js";
import { MOODS } from "./status.js";

const MANY = 12; // more pipelines than this get a field to search in

export function Rail({ pipelines, chosen, link }) {
  const [text, setText] = useState("");
  const found = pipelines.filter(({ name }) => name.toLowerCase().includes(text.trim().toLowerCase()));
  return html`<nav class="rail" aria-label="Pipelines">
    ${pipelines.length > MANY && html`<input class="field" type="search" aria-label="Find a pipeline"
      placeholder="Find one of ${pipelines.length}" value=${text} onInput=${(event) => setText(event.target.value)} />`}
    <ul>${found.map((pipeline) => html`<li key=${pipeline.name}>
      <${Entry} pipeline=${pipeline} chosen=${pipeline.name === chosen} href=${link(pipeline.name)} /></li>`)}</ul>
    ${!found.length && html`<p class="hint">No pipeline matches.</p>`}
  </nav>`;
}

function Entry({ pipeline, chosen, href }) {
  const { name, mood, succeeded_per_s, latency_ms } = pipeline;
  const element = useRef();
  useEffect(() => {
    if (chosen) element.current.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosen]);
  const works = ["calm", "busy", "refusing"].includes(mood);
  return html`<a href=${href} ref=${element} title=${name} aria-current=${chosen ? "page" : undefined}>
    <${MoodMark} mood=${mood} /><span class="name cut">${name}</span>
    <span class="live"><span>${MOODS[mood]}</span>${works && html`<span>${rate(succeeded_per_s)}</span><span>${ms(latency_ms?.p50)}</span>`}</span>
  </a>`;
}
