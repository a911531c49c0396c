// @ts-check
/** A field of the form for each declared input. */

import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { bytes } from "./format.js";
import { jsonError } from "./json_text.js";
import { exampleText, faultOf, isFile, isFiles, takesSound } from "./request.js";
import { picture, sound } from "./samples.js";
import { RATE, record, wavOf, whyNoSound } from "./sound.js";

/** @typedef {import("./request.js").Port} Port @typedef {import("./request.js").Value} Value @typedef {import("./request.js").Upload} Upload */

const LONG = 20_000; // characters that are edited in place

/** The URL of a blob, which is let go with the component. @param {Blob | null} blob */
function useUrl(blob) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    if (!blob) return setUrl("");
    const made = URL.createObjectURL(blob);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return url;
}

/** @param {File} file @returns {Upload} */
export const uploadOf = (file) => ({ name: file.name || "pasted.png", type: file.type, blob: file });

/** The port of a file, or of each file of a list. @param {Port} port */
const fileOf = (port) => (isFiles(port) ? /** @type {Port} */ (port.items) : port);

/** Whether there is a sample for an input. @param {Port} port */
export function hasSample(port) {
  const { kind, media_types: types = [] } = fileOf(port);
  return kind === "image" ? !types.length || types.some((type) => /^image\/(\*|jpeg)$/.test(type)) : takesSound(fileOf(port)) || !types.length;
}

/** @param {Port} port @param {boolean} raw whether samples come without a header @returns {Promise<Upload>} */
export async function sampleOf(port, raw) {
  const file = fileOf(port);
  if (file.kind === "image") return { name: "cup.jpg", type: "image/jpeg", blob: await picture() };
  if (takesSound(file)) return soundUpload("voice", sound(), raw);
  return { name: "hello.txt", type: "text/plain", blob: new Blob(["Hello from Penstock.\n"]) };
}

/** What the snippets name where no file is chosen. @param {Port} port @returns {Upload} */
export function placeholderOf(port) {
  const { kind } = fileOf(port);
  const [name, type] = kind === "image" ? ["photo.jpg", "image/jpeg"] : takesSound(fileOf(port)) ? ["sound.wav", "audio/wav"] : ["file.bin", ""];
  return { name, type, blob: null };
}

/** @param {string} name @param {Int16Array} samples @param {boolean} raw @returns {Upload} */
const soundUpload = (name, samples, raw) =>
  raw
    ? { name: `${name}.raw`, type: "", blob: new Blob([/** @type {BlobPart} */ (samples)]) }
    : { name: `${name}.wav`, type: "audio/wav", blob: new Blob([wavOf(samples)]) };

/**
 * @param {{port: Port, value: Value, onChange: (value: Value) => void, checked: boolean,
 *   streamed: boolean, onSample: () => void, onSize: (size: any) => void, over: any}} props
 *   `checked`: show what is missing. `over`: what is drawn over the image.
 */
export function Input({ port, value, onChange, checked, streamed, onSample, onSize, over }) {
  const id = `input-${port.name}`;
  const fault = faultOf(port, value);
  const file = isFile(port) || isFiles(port);
  const shape = port.shape ? ` ${JSON.stringify(port.shape).replaceAll("-1", "any").replaceAll(",", ", ")}` : "";
  const kind = port.kind === "list" ? `list of ${port.items?.kind ?? "json"}` : `${port.kind}${port.dtype ? ` of ${port.dtype}` : ""}${shape}`;
  const change = (/** @type {Partial<Value>} */ part) => onChange({ ...value, ...part });
  return html`<div class="try-input" data-input=${port.name}>
    <div class="try-name">
      <label for=${id}><b>${port.name}</b></label> <span class="hint">${kind}${port.media_types?.length ? ` (${port.media_types.join(", ")})` : ""}</span>
      ${port.optional && html`<label class="hint try-optional"><input type="checkbox" checked=${value.given} onChange=${() => change({ given: !value.given })} /> send it (optional)</label>`}
    </div>
    ${port.description && html`<p class="hint">${port.description}</p>`}
    ${value.given &&
    (file
      ? html`<${Files} id=${id} port=${port} value=${value} change=${change} streamed=${streamed} onSample=${onSample} onSize=${onSize} over=${over} />`
      : html`<${Typed} id=${id} port=${port} value=${value} change=${change} fault=${fault} />`)}
    ${fault && (checked || !file) && html`<p class="error" id=${`${id}-fault`} role="alert">${fault}</p>`}
  </div>`;
}

/** @param {{id: string, port: Port, value: Value, change: (part: Partial<Value>) => void, fault: string}} props */
function Typed({ id, port, value, change, fault }) {
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const { text } = value;
  const shared = {
    id,
    value: text,
    "aria-invalid": fault !== "",
    "aria-describedby": fault ? `${id}-fault` : undefined,
    onInput: (/** @type {any} */ event) => change({ text: event.target.value }),
  };
  if (port.kind === "boolean") return html`<select class="field" ...${shared}><option>true</option><option>false</option></select>`;
  if (port.kind === "integer" || port.kind === "number") {
    return html`<input class="field" inputmode=${port.kind === "integer" ? "numeric" : "decimal"} autocomplete="off" ...${shared} />`;
  }
  const isText = port.kind === "text";
  if (text.length > LONG) {
    return html`<p class="code" id=${id} tabindex="0">${text.slice(0, 120)}… <span class="hint">${bytes(text.length)}</span></p>
      <button class="button small" onClick=${() => change({ text: "" })}>Clear</button>
      <button class="button small" onClick=${() => change({ text: exampleText(port) })}>Example</button>`;
  }
  const error = !isText && fault ? jsonError(text) : null;
  const go = () => {
    area.current?.focus();
    area.current?.setSelectionRange(error?.index ?? 0, (error?.index ?? 0) + 1);
  };
  return html`<textarea ref=${area} class=${isText ? "field" : "field mono"} dir="auto" spellcheck=${isText} rows=${Math.min(14, Math.max(2, text.split("\n").length))} ...${shared} />
    ${error && html`<button class="code fault" title="Go there" onClick=${go}>${error.excerpt}${"\n"}${" ".repeat(error.caret)}<span class="error">▲</span></button>`}`;
}

/** @param {{id: string, port: Port, value: Value, change: (part: Partial<Value>) => void, streamed: boolean, onSample: () => void, onSize: (size: any) => void, over: any}} props */
function Files({ id, port, value, change, streamed, onSample, onSize, over }) {
  const chooser = useRef(/** @type {HTMLInputElement | null} */ (null));
  const file = fileOf(port);
  const isMany = isFiles(port);
  const word = file.kind === "image" ? "picture" : takesSound(file) ? "sound" : "file";
  const accept = file.media_types?.join(",") || (file.kind === "image" ? "image/*" : "");
  const choose = () => chooser.current?.click();
  const take = (/** @type {any} */ event) => {
    const chosen = [...event.target.files].map(uploadOf);
    if (chosen.length) change({ files: isMany ? [...value.files, ...chosen] : chosen });
    event.target.value = "";
  };
  const remove = (/** @type {number} */ index) => change({ files: value.files.filter((_, at) => at !== index) });
  const isEmpty = !value.files.length;
  return html`<input ref=${chooser} type="file" hidden accept=${accept} multiple=${isMany} onChange=${take} data-test="file" />
    ${value.files.map((upload, index) => html`<${Preview} key=${index} upload=${upload} kind=${file.kind} onSize=${index ? undefined : onSize} over=${index ? null : over} onRemove=${() => remove(index)} />`)}
    <div class=${isEmpty ? "drop" : "actions start"}>
      ${isEmpty && html`<p class="hint">Drop ${isMany ? `${word}s` : `a ${word}`} here${file.kind === "image" ? " or paste it" : ""}.</p>`}
      <button id=${id} class=${isEmpty ? "button" : "button small"} onClick=${choose}>${isMany ? `Add ${word}s` : isEmpty ? `Choose a ${word}` : `Choose another ${word}`}</button>
      ${takesSound(file) && html`<${Recorder} streamed=${streamed} onSound=${(/** @type {Upload} */ upload) => change({ files: isMany ? [...value.files, upload] : [upload] })} />`}
      ${isEmpty && hasSample(port) && html`<button class="button" onClick=${onSample}>Try it with a ${word} of ours</button>`}
    </div>`;
}

/** @param {{upload: Upload, kind: string, onSize?: (size: any) => void, over: any, onRemove: () => void}} props */
function Preview({ upload, kind, onSize, over, onRemove }) {
  const url = useUrl(upload.blob);
  const large = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [size, setSize] = useState(/** @type {{width: number, height: number} | null | undefined} */ (undefined));
  const isSound = upload.type.startsWith("audio/");
  const loaded = (/** @type {any} */ { target }) => {
    // A browser turns an image by its EXIF orientation, as the server does.
    const found = target.naturalWidth ? { width: target.naturalWidth, height: target.naturalHeight } : null;
    setSize(found);
    onSize?.(found);
  };
  const image = url && html`<img src=${url} alt=${`The picture that is sent: ${upload.name}`} onLoad=${loaded} onError=${loaded} />`;
  return html`<figure class="try-file">
    ${kind === "image" && size !== null && html`<div class="canvas">${image}${size && over}</div>`}
    ${kind === "image" && size === null && html`<p class="hint">This browser can't show ${upload.type || "this file"}. The server may still read it.</p>`}
    ${isSound && url && html`<audio controls src=${url} />`}
    <figcaption class="hint">
      <span class="cut">${upload.name}</span><span>${bytes(upload.blob?.size)}${size ? `, ${size.width} × ${size.height}` : ""}</span>
      ${size && html`<button class="button quiet small" onClick=${() => large.current?.showModal()}>Enlarge</button>`}
      <button class="button quiet small" aria-label=${`Remove ${upload.name}`} onClick=${onRemove}>Remove</button>
    </figcaption>
    ${size && html`<dialog class="large" ref=${large} aria-label=${upload.name} onClick=${(/** @type {any} */ event) => event.target === large.current && large.current?.close()}>
      <div class="canvas">${image}${over}</div>
      <form method="dialog"><button class="button">Close</button></form>
    </dialog>`}
  </figure>`;
}

/** @param {{streamed: boolean, onSound: (upload: Upload) => void}} props */
function Recorder({ streamed, onSound }) {
  const [raw, setRaw] = useState(streamed);
  const [words, say] = useState(whyNoSound);
  const [seconds, count] = useState(-1);
  const running = useRef(/** @type {Awaited<ReturnType<typeof record>> | null} */ (null));
  const left = useRef(false);
  useEffect(() => () => {
    left.current = true;
    running.current?.cancel();
  }, []);
  useEffect(() => {
    if (seconds < 0) return undefined;
    const timer = setTimeout(() => count(seconds + 1), 1000);
    return () => clearTimeout(timer);
  }, [seconds]);
  const press = async () => {
    say("");
    try {
      if (!running.current) {
        running.current = await record();
        if (left.current) return running.current.cancel();
        return count(0);
      }
      const { stop } = running.current;
      running.current = null;
      count(-1);
      const samples = await stop();
      if (!left.current) onSound(soundUpload("recording", samples, raw));
    } catch (error) {
      running.current = null;
      count(-1);
      say(/** @type {Error} */ (error).message);
    }
  };
  return html`<button class="button" disabled=${whyNoSound() !== ""} onClick=${press} data-test="record">${seconds < 0 ? "Record" : `Stop (${seconds} s)`}</button>
    <label class="hint">as <select class="field small" value=${raw ? "raw" : "wav"} onChange=${(/** @type {any} */ event) => setRaw(event.target.value === "raw")}>
      <option value="wav">WAV, ${RATE / 1000} kHz, 16 bits</option><option value="raw">samples without a header</option>
    </select></label>
    ${words && html`<p class="error" role="alert">${words}</p>`}`;
}
