// @ts-check
/** The panel *Try it*: a form of the declared inputs, the answer, and the same request as code. */

import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { Answer } from "./answer.js";
import { Copy, save } from "./copy.js";
import { Drawing } from "./drawing.js";
import { plural } from "./format.js";
import { filled, Input, sampleOf, startOf } from "./inputs.js";
import { faultOf, fileOf, isFiles, isUpload, planOf, portsOf } from "./request.js";
import { ask } from "./send.js";
import { find } from "./shapes.js";
import { SNIPPETS } from "./snippets.js";

/** @param {{pipeline: any, api: any}} props */
export function TryIt(props) {
  // Another pipeline, or other inputs after a reload, begin with a new form.
  const { name, inputs } = props.pipeline; // the inputs come later than the rest
  return inputs && html`<${Panel} key=${JSON.stringify([name, inputs])} ...${props} />`;
}

function Panel({ pipeline, api }) {
  const ports = useMemo(() => portsOf(pipeline), []);
  const streamed = Boolean(pipeline.stream_input);
  const [values, setValues] = useState(() => startOf(ports));
  const [options, setOptions] = useState({ events: streamed || pipeline.streams === true });
  const [checked, check] = useState(false);
  const [busy, setBusy] = useState(false);
  const [reply, setReply] = useState(null);
  const [size, setSize] = useState(null);
  const [isDrawn, draw] = useState(true);
  const [active, onActive] = useState(""); // the path that the pointer or focus is at
  const [shown, onShow] = useState(""); // the path that the answer is unfolded to
  const root = useRef(null);
  const going = useRef(null);
  useEffect(() => () => going.current?.abort(), []);

  const pictured = ports.find((port) => fileOf(port).kind === "image");
  const sent = pictured && values[pictured.name].files.length ? size : null;
  const found = useMemo(() => (reply?.value !== undefined && !reply.running && !reply.problem ? find(reply.value, sent) : null), [reply, sent]);
  const drawn = found && sent ? [...found.shapes, ...found.masks] : [];
  const links = useMemo(() => ({ active, shown, onActive, linked: new Set(drawn.map(({ path }) => path)) }), [active, shown, found]);
  const change = (name, part) => {
    if (part.files) setReply(null); // it was of another file
    setValues((before) => ({ ...before, [name]: { ...before[name], ...part } }));
  };

  /** Take files that were dropped or pasted. `name`: of the input that they were dropped on. */
  const put = async ([first, ...others], name) => {
    if (!first) return;
    const isEmpty = (port) => isUpload(port) && !values[port.name].files.length;
    const port = ports.find((one) => one.name === name) ?? ports.find(isEmpty) ?? ports.find(isUpload) ?? ports[0];
    const files = isFiles(port) ? [...values[port.name].files, first, ...others] : [first];
    change(port.name, { given: true, ...(isUpload(port) ? { files } : { text: await first.text() }) });
  };
  useEffect(() => {
    const paste = (event) => put(event.clipboardData.files);
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  });
  const drop = (event) => {
    event.preventDefault();
    put(event.dataTransfer.files, event.target.closest("[data-input]")?.dataset.input);
  };

  const send = async (form) => {
    check(true);
    const wrong = ports.find((port) => faultOf(port, form[port.name]));
    if (wrong) return root.current.querySelector(`[data-input="${CSS.escape(wrong.name)}"] :is(.field, button)`)?.focus();
    going.current = new AbortController();
    setBusy(true);
    setReply(null);
    onShow("");
    const answer = await ask(api, planOf(pipeline, form, options), going.current.signal, setReply);
    setReply(answer);
    setBusy(false);
  };
  const sample = async () => {
    const form = { ...values };
    for (const port of ports) {
      const value = form[port.name];
      const file = value.given && isUpload(port) && !value.files.length && (await sampleOf(port, streamed));
      if (file) form[port.name] = { ...value, files: [file] };
    }
    setValues(form);
    await send(form);
  };

  const over = isDrawn && drawn.length > 0 && html`<${Drawing} ...${found} size=${size} active=${active} onActive=${onActive} onShow=${onShow} />`;
  const answer = useMemo(() => reply && html`<${Answer} reply=${reply} found=${found} links=${links} />`, [reply, found, links]);
  const code = useMemo(() => {
    return html`<${CopyAs} plan=${planOf(pipeline, filled(ports, values), options)} hasKey=${Boolean(api.key)} />`;
  }, [values, options, api.key]);
  return html`<div class="try" ref=${root} onDragOver=${(event) => event.preventDefault()} onDrop=${drop}>
    <form class="try-form" novalidate onSubmit=${(event) => (event.preventDefault(), send(values))}>
      ${ports.map((port) => html`<${Input} key=${port.name} port=${port} value=${values[port.name]} change=${(part) => change(port.name, part)} checked=${checked} streamed=${streamed}
        onSample=${sample} onSize=${port === pictured ? setSize : null} over=${port === pictured ? over : null} />`)}
      ${drawn.length > 0 && html`<label class="hint"><input type="checkbox" checked=${isDrawn} onChange=${() => draw(!isDrawn)} /> Draw ${found.isCut && "the first "}${plural(drawn.length, "thing")} on the picture</label>`}
      <${Choices} pipeline=${pipeline} options=${options} onChange=${setOptions} />
      <div class="actions start">
        <button class="button primary" disabled=${busy}>${reply ? "Send again" : "Send"}</button>
        ${busy && html`<button class="button" type="button" onClick=${() => going.current.abort()}>Stop</button>`}
      </div>
    </form>
    ${answer}${code}
  </div>`;
}

function Choices({ pipeline: { priority_levels: levels, versions = [], timeout_s: timeout }, options, onChange }) {
  const set = (name) => ({ target }) => onChange({ ...options, [name]: target.value });
  const select = (name, words, values) =>
    html`<label>${words} <select class="field" onChange=${set(name)}><option value="">default</option>${values.map((value) => html`<option>${value}</option>`)}</select></label>`;
  return html`<details class="choices"><summary>Options</summary>
    <label>Deadline <input class="field" type="number" min="1" placeholder=${timeout * 1000 || ""} value=${options.deadline} onInput=${set("deadline")} /> ms</label>
    ${levels > 1 && select("priority", "Priority (1 is the highest)", Array.from({ length: levels }, (_, index) => index + 1))}
    ${versions.length > 1 && select("version", "Version", versions)}
    <label><input type="checkbox" checked=${options.events} onChange=${() => onChange({ ...options, events: !options.events })} /> Show results as they come</label>
  </details>`;
}

/** The request as code, in tabs. */
function CopyAs({ plan, hasKey }) {
  const [name, choose] = useState("curl");
  const names = Object.keys(SNIPPETS);
  const { code, files } = SNIPPETS[name](plan, { url: document.baseURI, key: hasKey });
  const move = ({ key, currentTarget }) => {
    const step = { ArrowRight: 1, ArrowLeft: 2 }[key];
    const next = (names.indexOf(name) + step) % 3;
    if (!step) return;
    choose(names[next]);
    currentTarget.children[next].focus();
  };
  const tab = (one) => html`<button class="tab" role="tab" type="button" data-text=${one} aria-selected=${one === name} tabindex=${one === name ? 0 : -1} onClick=${() => choose(one)}>${one}</button>`;
  return html`<section aria-label="The same request as code">
    <div class="copy-as"><div class="tabs" role="tablist" aria-label="Language" onKeyDown=${move}>${names.map(tab)}</div><${Copy} text=${code} /></div>
    <pre class="code snippet" tabindex="0" role="tabpanel" aria-label=${name}>${code}</pre>
    ${[...files].map(([file, content]) => html`<button class="button small" onClick=${() => save(file, content)}>Save ${file}</button> `)}
  </section>`;
}
