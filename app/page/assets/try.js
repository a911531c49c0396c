// @ts-check
/** The panel *Try it*: a form of the declared inputs, the answer, and the same request as code. */

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm/standalone.module.js";
import { Answer } from "./answer.js";
import { Copy, save } from "./copy.js";
import { Drawing } from "./drawing.js";
import { ms, plural, rate } from "./format.js";
import { Input, hasSample, placeholderOf, sampleOf, uploadOf } from "./inputs.js";
import { exampleOf, faultOf, fileOf, isFiles, isUpload, planOf, portsOf } from "./request.js";
import { ask, askMany } from "./send.js";
import { find } from "./shapes.js";
import { SNIPPETS } from "./snippets.js";

const MANY = 50;

/**
 * @param {{pipeline: any, api: any,
 *   onAnswered?: (answer: {id: string, status: number, ms: number}) => void}} props
 */
export function TryIt(props) {
  // Another pipeline, or other inputs after a reload, begin with a new form.
  const { name, inputs } = props.pipeline;
  return html`<${Panel} key=${JSON.stringify([name, inputs])} ...${props} />`;
}

function Panel({ pipeline, api, onAnswered }) {
  const ports = useMemo(() => portsOf(pipeline), []);
  const streamed = Boolean(pipeline.stream_input);
  const [values, setValues] = useState(() => Object.fromEntries(ports.map((port) => [port.name, { given: !port.optional, text: exampleOf(port), files: [] }])));
  const [options, setOptions] = useState({ events: Boolean(streamed || pipeline.streams) });
  const [checked, check] = useState(false);
  const [busy, setBusy] = useState(false);
  const [reply, setReply] = useState(/** @type {import("./send.js").Reply | null} */ (null));
  const [load, setLoad] = useState(null);
  const [size, setSize] = useState(null);
  const [isDrawn, draw] = useState(true);
  const [active, setActive] = useState("");
  const [shown, show] = useState("");
  const root = useRef(null);
  const going = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => going.current?.abort(), []);

  const pictured = ports.find((port) => fileOf(port).kind === "image");
  const hasPicture = pictured && values[pictured.name].files.length > 0;
  const found = useMemo(() => {
    const isWhole = reply?.value !== undefined && !reply.running && reply.status < 300;
    return isWhole ? find(reply.value, hasPicture ? size : null) : null;
  }, [reply, size, hasPicture]);
  const drawn = found && hasPicture && size ? [...found.shapes, ...found.masks] : [];
  const links = useMemo(() => ({ active, shown, onActive: setActive, linked: new Set(drawn.map(({ path }) => path)) }), [active, shown, found]);
  const change = (name, part) => {
    if (part.files) setReply(null); // it was of another file
    setValues((before) => ({ ...before, [name]: { ...before[name], ...part } }));
  };

  /** Take files that were dropped or pasted: for the input of this name, or the first that is empty. */
  const put = async (list, name) => {
    const uploads = [...list].map(uploadOf);
    const port = ports.find((one) => one.name === name) ?? ports.find((one) => isUpload(one) && !values[one.name].files.length) ?? ports.find(isUpload) ?? ports[0];
    if (!uploads.length) return;
    const files = isFiles(port) ? [...values[port.name].files, ...uploads] : uploads.slice(0, 1);
    change(port.name, { given: true, ...(isUpload(port) ? { files } : { text: await uploads[0].blob.text() }) });
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

  /** Run `work` with the request that a form means, if it is complete. */
  const start = async (form, work) => {
    check(true);
    const wrong = ports.find((port) => faultOf(port, form[port.name]));
    if (wrong) return root.current.querySelector(`[data-input="${CSS.escape(wrong.name)}"] :is(.field, button)`)?.focus();
    going.current = new AbortController();
    setBusy(true);
    setLoad(null);
    show("");
    await work(planOf(pipeline, form, options), going.current.signal);
    setBusy(false);
  };
  const send = (form) =>
    start(form, async (plan, signal) => {
      setReply(null);
      const answer = await ask(api, plan, signal, setReply);
      setReply(answer);
      if (answer) onAnswered?.({ id: answer.id, status: answer.status, ms: answer.ms });
    });
  const sendMany = () => start(values, (plan, signal) => askMany(api, plan, signal, MANY, (replies, time) => setLoad({ replies, time })));
  const sample = async () => {
    const form = { ...values };
    for (const port of ports) {
      const { given, files } = form[port.name];
      if (given && isUpload(port) && !files.length && hasSample(port)) form[port.name] = { given, text: "", files: [await sampleOf(port, streamed)] };
    }
    setValues(form);
    await send(form);
  };

  const over = isDrawn && drawn.length > 0 && html`<${Drawing} ...${found} size=${size} active=${active} onActive=${setActive} onShow=${show} />`;
  const answer = useMemo(() => reply && html`<${Answer} reply=${reply} found=${found} links=${links} />`, [reply, found, links]);
  const code = useMemo(() => {
    const fill = (port) => {
      const value = values[port.name];
      return [port.name, isUpload(port) && !value.files.length ? { ...value, files: [placeholderOf(port)] } : value];
    };
    return html`<${CopyAs} plan=${planOf(pipeline, Object.fromEntries(ports.map(fill)), options)} hasKey=${Boolean(api.key)} />`;
  }, [values, options, api.key]);
  return html`<div class="try" ref=${root} onDragOver=${(event) => event.preventDefault()} onDrop=${drop}>
    <form class="try-form" novalidate onSubmit=${(event) => (event.preventDefault(), send(values))}>
      ${ports.map((port) => html`<${Input} key=${port.name} port=${port} value=${values[port.name]} change=${(part) => change(port.name, part)} checked=${checked} streamed=${streamed}
        onSample=${sample} onSize=${port === pictured ? setSize : null} over=${port === pictured ? over : null} />`)}
      ${drawn.length > 0 && html`<label class="hint"><input type="checkbox" checked=${isDrawn} onChange=${() => draw(!isDrawn)} />
        Draw the answer on the picture: ${found.isCut && "the first "}${plural(drawn.length, "thing")}</label>`}
      <${Choices} pipeline=${pipeline} options=${options} onChange=${setOptions} />
      <div class="actions start">
        <button class="button primary" disabled=${busy}>${reply ? "Send again" : "Send"}</button>
        ${busy
          ? html`<button class="button" type="button" onClick=${() => going.current.abort()}>Stop</button>`
          : !streamed && html`<button class="button" type="button" title="Shows how batches form" onClick=${sendMany}>Send ${MANY} at once</button>`}
      </div>
    </form>
    ${load && html`<${Load} ...${load} />`}${answer}${code}
  </div>`;
}

function Choices({ pipeline: { priority_levels: levels = 0, versions = [], timeout_s: timeout }, options, onChange }) {
  const set = (name) => ({ target }) => onChange({ ...options, [name]: target.value });
  const select = (name, words, values) =>
    html`<label>${words} <select class="field" onChange=${set(name)}><option value="">default</option>${values.map((value) => html`<option>${value}</option>`)}</select></label>`;
  return html`<details class="choices"><summary>Options</summary>
    <label>Deadline <input class="field" type="number" min="1" placeholder=${timeout ? timeout * 1000 : ""} value=${options.deadline} onInput=${set("deadline")} /> ms</label>
    ${levels > 1 && select("priority", "Priority (1 is the highest)", Array.from({ length: levels }, (_, index) => index + 1))}
    ${versions.length > 1 && select("version", "Version", versions)}
    <label><input type="checkbox" checked=${options.events} onChange=${() => onChange({ ...options, events: !options.events })} /> Show results as they come</label>
  </details>`;
}

/** How a load went: the rate, and for each node how many ran in a batch of which size. */
function Load({ replies, time }) {
  const failed = replies.filter(({ status }) => !status || status >= 300);
  const nodes = {};
  for (const { node, batch } of replies.flatMap(({ timing }) => timing)) (nodes[node] ??= {})[batch] = (nodes[node][batch] ?? 0) + 1;
  const words = ([batch, number]) => `${number} ${batch === "1" ? "alone" : `in batches of ${batch}`}`;
  return html`<section aria-label="Load">
    <p role="status"><b>${replies.length - failed.length} of ${replies.length} answered</b> in ${ms(time)}: ${rate((1000 * replies.length) / time)}${failed.length > 0 && `, failed with ${failed[0].status || "no answer"}`}</p>
    <table class="timings">${Object.entries(nodes).map(([node, sizes]) => html`<tr><th scope="row">${node}</th><td>${Object.entries(sizes).map(words).join(", ")}</td></tr>`)}</table>
  </section>`;
}

/** The request as code, in tabs. @param {{plan: import("./request.js").Plan, hasKey: boolean}} props */
function CopyAs({ plan, hasKey }) {
  const [name, choose] = useState("curl");
  const names = Object.keys(SNIPPETS);
  const { code, files } = SNIPPETS[name](plan, { url: document.baseURI, key: hasKey });
  const move = ({ key, currentTarget }) => {
    const index = names.indexOf(name) + ({ ArrowRight: 1, ArrowLeft: -1 }[key] ?? 0) + names.length;
    choose(names[index % names.length]);
    if (key.startsWith("Arrow")) currentTarget.children[index % names.length].focus();
  };
  const tab = (one) => html`<button class="tab" role="tab" type="button" data-text=${one} aria-selected=${one === name} tabindex=${one === name ? 0 : -1} onClick=${() => choose(one)}>${one}</button>`;
  return html`<section aria-label="The same request as code">
    <div class="copy-as"><div class="tabs" role="tablist" aria-label="Language" onKeyDown=${move}>${names.map(tab)}</div><${Copy} text=${code} /></div>
    <pre class="code snippet" tabindex="0" role="tabpanel" aria-label=${name} data-test="snippet">${code}</pre>
    ${files.map((file) => html`<button class="button small" onClick=${() => save(file.name, file.content)}>Save ${file.name}</button> `)}
  </section>`;
}
