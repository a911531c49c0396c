// @ts-check
/** The panel *Try it*: a form for the declared inputs, the answer, and the same request as code. */

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm/standalone.module.js";
import { Answer, timingOf } from "./answer.js";
import { copyText, save } from "./copy.js";
import { Drawing } from "./drawing.js";
import { count, ms, plural, rate } from "./format.js";
import { Input, hasSample, placeholderOf, sampleOf, uploadOf } from "./inputs.js";
import { parseExact } from "./json_text.js";
import { faultOf, initOf, isFile, isFiles, planOf, portsOf, startOf } from "./request.js";
import { find } from "./shapes.js";
import { SNIPPETS } from "./snippets.js";

/** @typedef {import("./request.js").Plan} Plan @typedef {import("./request.js").Value} Value @typedef {import("./answer.js").Reply} Reply */

const MANY = 50;
const AT_ONCE = 8;
const MOST_PARTS = 1000;

/** @param {{pipeline: any, api: any, onAnswered?: (answer: {id: string, status: number, ms: number}) => void}} props */
export function TryIt({ pipeline, api, onAnswered }) {
  // Another pipeline, or other inputs after a reload, begin with a new form.
  const key = JSON.stringify([pipeline.name, pipeline.inputs]);
  return html`<${Panel} key=${key} pipeline=${pipeline} api=${api} onAnswered=${onAnswered} />`;
}

/** @param {{pipeline: any, api: any, onAnswered?: (answer: {id: string, status: number, ms: number}) => void}} props */
function Panel({ pipeline, api, onAnswered }) {
  const ports = useMemo(() => portsOf(pipeline), []);
  const streamed = !!pipeline.stream_input;
  const [values, setValues] = useState(() => Object.fromEntries(ports.map((port) => [port.name, startOf(port)])));
  const [options, setOptions] = useState(/** @type {import("./request.js").Options} */ ({ events: streamed }));
  const [checked, check] = useState(false);
  const [reply, setReply] = useState(/** @type {Reply | null} */ (null));
  const [load, setLoad] = useState(/** @type {Load | null} */ (null));
  const [busy, setBusy] = useState("");
  const [size, setSize] = useState(/** @type {any} */ (null));
  const [isDrawn, draw] = useState(true);
  const [active, setActive] = useState("");
  const [shown, show] = useState("");
  const root = useRef(/** @type {HTMLElement | null} */ (null));
  const going = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => going.current?.abort(), []);

  const pictures = ports.filter((port) => (isFiles(port) ? port.items?.kind : port.kind) === "image");
  const sent = pictures.length ? values[pictures[0].name].files[0] : undefined;
  const found = useMemo(() => (reply && reply.isJson && reply.status < 300 && !reply.running ? find(reply.value, sent ? size : null) : null), [reply, size, sent]);
  const links = useMemo(
    () => ({ active, shown, onActive: setActive, linked: new Set(found && sent ? [...found.shapes, ...found.masks].map(({ path }) => path) : []) }),
    [active, shown, found, sent],
  );
  const change = (/** @type {string} */ name, /** @type {Value} */ value) => {
    if (value.files !== values[name].files) setReply(null);
    setValues((before) => ({ ...before, [name]: value }));
  };

  /** @param {FileList | null | undefined} files @param {string} [name] of the input that they are for */
  const put = async (files, name) => {
    const uploads = [...(files ?? [])].map(uploadOf);
    const takes = (/** @type {any} */ port) => isFile(port) || isFiles(port);
    const port = ports.find((one) => one.name === name) ?? ports.find((one) => takes(one) && !values[one.name].files.length) ?? ports.find(takes) ?? ports[0];
    if (!uploads.length) return;
    const before = values[port.name];
    if (isFiles(port)) change(port.name, { ...before, given: true, files: [...before.files, ...uploads] });
    else if (isFile(port)) change(port.name, { ...before, given: true, files: uploads.slice(0, 1) });
    else change(port.name, { ...before, given: true, text: await /** @type {Blob} */ (uploads[0].blob).text() });
  };
  useEffect(() => {
    const paste = (/** @type {ClipboardEvent} */ event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      put(event.clipboardData.files);
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  });

  /** @param {Record<string, Value>} form @returns {Plan | null} */
  const ready = (form) => {
    check(true);
    const wrong = ports.find((port) => faultOf(port, form[port.name]));
    if (!wrong) return planOf(pipeline, form, options);
    const field = root.current?.querySelector(`[data-input="${CSS.escape(wrong.name)}"]`);
    /** @type {HTMLElement | null | undefined} */ (field?.querySelector("textarea, input:not([hidden]), button"))?.focus();
    return null;
  };

  /** @param {Record<string, Value>} form */
  const send = async (form) => {
    const plan = ready(form);
    if (!plan) return;
    const controller = begin("Sending");
    setReply(null);
    const answer = await ask(api, plan, controller.signal, setReply);
    if (controller.signal.aborted && going.current !== controller) return;
    end(controller);
    if (!answer) return;
    setReply(answer);
    onAnswered?.({ id: answer.id, status: answer.status, ms: answer.ms });
  };
  const sendMany = async () => {
    const plan = ready(values);
    if (!plan) return;
    const controller = begin(`Sending ${MANY}`);
    await ramp(api, { ...plan, events: false }, controller.signal, setLoad);
    end(controller);
  };
  const begin = (/** @type {string} */ words) => {
    going.current?.abort();
    const controller = new AbortController();
    going.current = controller;
    setBusy(words);
    setLoad(null);
    show("");
    return controller;
  };
  const end = (/** @type {AbortController} */ controller) => {
    if (going.current === controller) setBusy("");
  };
  const sample = async () => {
    const form = { ...values };
    for (const port of ports) {
      const isEmpty = (isFile(port) || isFiles(port)) && !form[port.name].files.length;
      if (form[port.name].given && isEmpty && hasSample(port)) form[port.name] = { ...form[port.name], files: [await sampleOf(port, streamed)] };
    }
    setValues(form);
    await send(form);
  };

  const over = found && isDrawn && html`<${Drawing} size=${size} shapes=${found.shapes} masks=${found.masks} active=${active} onActive=${setActive} onShow=${show} />`;
  const drawings = found && sent ? found.shapes.length + found.masks.length : 0;
  const code = useMemo(() => {
    const form = Object.fromEntries(
      ports.map((port) => {
        const value = values[port.name];
        const isEmpty = (isFile(port) || (isFiles(port) && !port.optional)) && !value.files.length;
        return [port.name, isEmpty ? { ...value, files: [placeholderOf(port)] } : value];
      }),
    );
    return html`<${CopyAs} plan=${planOf(pipeline, form, options)} hasKey=${!!api.key} />`;
  }, [values, options, api.key]);
  const answer = useMemo(() => reply && html`<${Answer} reply=${reply} found=${found} links=${links} />`, [reply, found, links]);
  const drop = {
    onDragOver: (/** @type {DragEvent} */ event) => event.preventDefault(),
    onDrop: (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      const name = /** @type {HTMLElement} */ (event.target).closest("[data-input]")?.getAttribute("data-input");
      put(event.dataTransfer?.files, name ?? undefined);
    },
  };
  return html`<div class="try" ref=${root} ...${drop}>
    ${pipeline.state && pipeline.state !== "ready" && html`<p class="hint">This pipeline is ${pipeline.state}. ${pipeline.reason}</p>`}
    <form class="try-form" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), send(values))}>
      ${ports.map((port) => html`<${Input} key=${port.name} port=${port} value=${values[port.name]} onChange=${(/** @type {Value} */ value) => change(port.name, value)}
        checked=${checked} streamed=${streamed} onSample=${sample} onSize=${port === pictures[0] ? setSize : () => {}} over=${port === pictures[0] ? over : null} />`)}
      ${drawings > 0 && html`<label class="hint"><input type="checkbox" checked=${isDrawn} onChange=${() => draw(!isDrawn)} />
        Draw the answer on the picture: ${plural(drawings, "thing")}${found?.more ? `, ${count(found.more)} more left out` : ""}</label>`}
      <${Choices} pipeline=${pipeline} options=${options} onChange=${setOptions} streamed=${streamed} />
      <div class="actions start">
        <button class="button primary" type="submit" disabled=${busy !== ""}>${reply ? "Send again" : "Send"}</button>
        ${!streamed && html`<button class="button" type="button" disabled=${busy !== ""} onClick=${sendMany} title="See how batches form">Send ${MANY} at once</button>`}
        ${busy && html`<button class="button" type="button" onClick=${() => going.current?.abort()}>Stop</button><span class="hint" role="status">${busy} …</span>`}
      </div>
    </form>
    ${load && html`<${LoadResult} load=${load} />`}${answer}${code}
  </div>`;
}

/** @param {{pipeline: any, options: any, onChange: (options: any) => void, streamed: boolean}} props */
function Choices({ pipeline, options, onChange, streamed }) {
  const set = (/** @type {string} */ name) => (/** @type {any} */ event) => onChange({ ...options, [name]: event.target.value });
  const levels = pipeline.priority_levels ?? 0;
  const versions = pipeline.versions ?? [];
  return html`<details class="choices">
    <summary>Options</summary>
    <label>Deadline <input class="field" type="number" min="1" step="1" placeholder=${pipeline.timeout_s ? String(pipeline.timeout_s * 1000) : "none"} value=${options.deadline ?? ""} onInput=${set("deadline")} /> <span class="unit">ms</span></label>
    ${levels > 1 && html`<label>Priority <select class="field" onChange=${set("priority")}><option value="">default</option>
      ${Array.from({ length: levels }, (_, at) => html`<option value=${at + 1}>${at + 1}${at ? "" : " (first)"}</option>`)}</select></label>`}
    ${versions.length > 1 && html`<label>Version <select class="field" onChange=${set("version")}><option value="">newest</option>
      ${versions.map((/** @type {any} */ one) => html`<option>${one.version ?? one}</option>`)}</select></label>`}
    ${!streamed && html`<label><input type="checkbox" checked=${options.events} onChange=${() => onChange({ ...options, events: !options.events })} /> Show results as they come (events)</label>`}
  </details>`;
}

/** @param {{plan: Plan, hasKey: boolean}} props */
function CopyAs({ plan, hasKey }) {
  const [name, choose] = useState("curl");
  const [said, say] = useState("");
  const { code, files } = SNIPPETS[name](plan, { url: document.baseURI, key: hasKey });
  const copy = async () => say((await copyText(code)) ? "Copied." : "This browser did not copy it.");
  const names = Object.keys(SNIPPETS);
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(name) + step + names.length) % names.length];
    choose(next);
    /** @type {HTMLElement} */ (event.currentTarget).querySelector(`[data-name=${next}]`)?.focus();
  };
  return html`<section aria-label="Copy as">
    <div class="tabs" role="tablist" aria-label="The same request as" onKeyDown=${move}>
      ${names.map((one) => html`<button class="tab" role="tab" type="button" data-name=${one} data-text=${one} aria-selected=${one === name} tabindex=${one === name ? 0 : -1} onClick=${() => (choose(one), say(""))}>${one}</button>`)}
      <button class="button quiet small copy" onClick=${copy}>Copy</button>
    </div>
    <pre class="code snippet" tabindex="0" role="tabpanel" aria-label=${name} data-test="snippet">${code}</pre>
    ${files.map(({ name: file, content }) => html`<button class="button small" onClick=${() => save(file, content)}>Save ${file}</button> `)}
    <span class="hint" role="status">${said}</span>
  </section>`;
}

/**
 * Send a request and read its answer; null: it was stopped.
 * @param {any} api @param {Plan} plan @param {AbortSignal} signal @param {(reply: Reply) => void} onPart
 * @returns {Promise<Reply | null>}
 */
async function ask(api, plan, signal, onPart) {
  const started = performance.now();
  /** @type {Reply} */
  const reply = { status: 0, id: "", ms: 0, text: "", value: null, isJson: false, timing: [], retryAfter: "", parts: null, running: true };
  try {
    const response = await api.fetch(plan.path, { ...initOf(plan), signal });
    Object.assign(reply, {
      status: response.status,
      id: response.headers.get("X-Request-Id") ?? "",
      timing: timingOf(response.headers.get("Server-Timing")),
      retryAfter: response.headers.get("Retry-After") ?? "",
    });
    if (response.headers.get("Content-Type")?.startsWith("text/event-stream")) await readEvents(response, reply, onPart);
    else {
      reply.text = await response.text();
      try {
        reply.value = parseExact(reply.text);
        reply.isJson = true;
      } catch {
        // Not JSON: it is shown as a text.
      }
    }
  } catch (error) {
    if (signal.aborted) return reply.parts === null ? null : { ...reply, running: false, ms: performance.now() - started };
    if (/** @type {any} */ (error).status) return { ...reply, running: false, status: /** @type {any} */ (error).status, value: /** @type {any} */ (error).problem };
  }
  return { ...reply, running: false, ms: performance.now() - started };
}

/** Read an answer of events: its parts become `value`, an error event takes their place. @param {Response} response @param {Reply} reply @param {(reply: Reply) => void} onPart */
async function readEvents(response, reply, onPart) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  Object.assign(reply, { value: [], isJson: true, parts: 0 });
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = /** @type {string} */ (events.pop());
    for (const event of events) {
      const data = /^data: (.*)$/m.exec(event)?.[1];
      if (data === undefined) continue;
      if (event.startsWith("event: error")) Object.assign(reply, { value: JSON.parse(data), status: JSON.parse(data).status, text: data });
      else if (!event.startsWith("event: end")) {
        reply.parts = /** @type {number} */ (reply.parts) + 1;
        reply.text += `${data}\n`;
        reply.value = [...reply.value, parseExact(data)].slice(-MOST_PARTS);
      }
    }
    onPart({ ...reply });
  }
}

/** @typedef {{sent: number, ms: number, good: number, others: Record<string, number>, batches: Record<string, Record<number, number>>, slowest: number, isDone: boolean}} Load */

/**
 * Send a request many times, at most `AT_ONCE` at a time.
 * @param {any} api @param {Plan} plan @param {AbortSignal} signal @param {(load: Load) => void} onLoad
 */
async function ramp(api, plan, signal, onLoad) {
  /** @type {Load} */
  const load = { sent: 0, ms: 0, good: 0, others: {}, batches: {}, slowest: 0, isDone: false };
  const started = performance.now();
  let left = MANY;
  const { Accept: _, ...headers } = plan.headers;
  const one = async () => {
    while (left-- > 0 && !signal.aborted) {
      const begun = performance.now();
      try {
        const response = await api.fetch(plan.path, { ...initOf({ ...plan, headers }), signal });
        await response.arrayBuffer();
        if (response.ok) load.good += 1;
        else load.others[response.status] = (load.others[response.status] ?? 0) + 1;
        for (const { node, batch } of timingOf(response.headers.get("Server-Timing"))) {
          load.batches[node] ??= {};
          load.batches[node][batch] = (load.batches[node][batch] ?? 0) + 1;
        }
      } catch {
        if (signal.aborted) break;
        load.others["no answer"] = (load.others["no answer"] ?? 0) + 1;
      }
      load.sent += 1;
      load.slowest = Math.max(load.slowest, performance.now() - begun);
      onLoad({ ...load, ms: performance.now() - started });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
  if (load.sent) onLoad({ ...load, ms: performance.now() - started, isDone: true });
}

/** @param {{load: Load}} props */
function LoadResult({ load }) {
  const others = Object.entries(load.others).map(([status, number]) => `${number} × ${status}`);
  return html`<section class="load" aria-label="Load">
    <p role="status"><b>${count(load.good)} of ${load.sent} answered</b> in ${ms(load.ms)}: ${rate((1000 * load.sent) / load.ms)}, the slowest ${ms(load.slowest)}${others.length ? `; ${others.join(", ")}` : ""}.</p>
    <table class="timings">
      <caption class="hint">How many requests ran in a batch of which size</caption>
      ${Object.entries(load.batches).map(([node, sizes]) => html`<tr key=${node}><th scope="row">${node}</th>
        <td><div class="batches">${Object.entries(sizes).map(([batch, number]) => html`<span class="pill" key=${batch}>${number} in ${batch === "1" ? "their own" : batch}</span>`)}</div></td></tr>`)}
    </table>
  </section>`;
}
