// @ts-check
/** A field of the form for each declared input. */

import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { bytes } from "./format.js";
import { jsonError } from "./json_text.js";
import { exampleOf, faultOf, fileOf, isFiles, isUpload } from "./request.js";
import { picture, sound } from "./samples.js";
import { record, wavOf, whyNoSound } from "./sound.js";

const LONG = 20_000; // characters: a longer text is not edited in place

/** @typedef {import("./request.js").Port} Port @typedef {import("./request.js").Upload} Upload */

/** @param {Port} port */
function nounOf(port) {
  const { kind, media_types: types } = fileOf(port);
  return kind === "image" ? "picture" : types?.some((type) => type.startsWith("audio/")) ? "sound" : "file";
}

/** @param {File} file @returns {Upload} */
export const uploadOf = (file) => ({ name: file.name, type: file.type, blob: file });

/** What the code names where no file is chosen yet. @param {Port} port @returns {Upload} */
export function placeholderOf(port) {
  const [name, type] = { picture: ["photo.jpg", "image/jpeg"], sound: ["sound.wav", "audio/wav"], file: ["file.bin", ""] }[nounOf(port)];
  return { name, type, blob: null };
}

/** Whether there is a sample for an input. @param {Port} port */
export function hasSample(port) {
  const types = fileOf(port).media_types;
  return !types?.length || types.some((type) => /^(audio\/|image\/(\*|jpeg)$)/.test(type));
}

/** @param {Port} port @param {boolean} streamed @returns {Promise<Upload>} */
export async function sampleOf(port, streamed) {
  const noun = nounOf(port);
  if (noun === "picture") return { name: "cup.jpg", type: "image/jpeg", blob: await picture() };
  if (noun === "sound") return soundOf("voice", sound(), streamed);
  return { name: "hello.txt", type: "text/plain", blob: new Blob(["Hello from Penstock.\n"]) };
}

/** A stream has the samples alone, because the header of a WAV file says how many come. @returns {Upload} */
const soundOf = (name, samples, streamed) =>
  streamed
    ? { name: `${name}.raw`, type: "", blob: new Blob([samples]) }
    : { name: `${name}.wav`, type: "audio/wav", blob: new Blob([wavOf(samples)]) };

/**
 * @param {{port: Port, value: import("./request.js").Value, change: (part: object) => void,
 *   checked: boolean, streamed: boolean, onSample: () => void, onSize: (size: any) => void,
 *   over: any}} props `checked`: say what is missing. `over`: what is drawn on the picture.
 */
export function Input(props) {
  const { port, value, change, checked } = props;
  const id = `input-${port.name}`;
  const fault = faultOf(port, value);
  const shape = port.shape ? ` [${port.shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]` : "";
  const kind = port.kind === "list" ? `list of ${port.items?.kind ?? "json"}` : `${port.kind}${port.dtype ? ` of ${port.dtype}` : ""}${shape}`;
  return html`<div class="try-input" data-input=${port.name}>
    <div class="try-name">
      <label for=${id}><b>${port.name}</b></label> <span class="hint">${kind} ${port.media_types?.join(", ")}</span>
      ${port.optional && html`<label class="hint try-optional"><input type="checkbox" checked=${value.given} onChange=${() => change({ given: !value.given })} /> send it</label>`}
    </div>
    ${port.description && html`<p class="hint">${port.description}</p>`}
    ${value.given && html`<${isUpload(port) ? Files : Typed} ...${props} id=${id} fault=${fault} />`}
    ${fault && (checked || !isUpload(port)) && html`<p class="error" id=${`${id}-fault`} role="alert">${fault}</p>`}
  </div>`;
}

function Typed({ id, port, value: { text }, change, fault }) {
  const area = useRef(null);
  const isText = port.kind === "text";
  const shared = {
    id,
    class: isText ? "field" : "field mono",
    value: text,
    "aria-invalid": fault !== "",
    "aria-describedby": fault && `${id}-fault`,
    onInput: ({ target }) => change({ text: target.value }),
  };
  if (port.kind === "boolean") return html`<select ...${shared}>${["true", "false"].map((one) => html`<option value=${one}>${one}</option>`)}</select>`;
  if (port.kind === "integer" || port.kind === "number") return html`<input inputmode="decimal" autocomplete="off" ...${shared} />`;
  const isLong = text.length > LONG;
  if (isLong || (!isText && !text)) {
    return html`<p class="code mono" id=${id}>${text.slice(0, 120)}${isLong ? `… ${bytes(text.length)}` : "Drop a file of JSON here"}</p>
      <button type="button" class="button small" onClick=${() => change({ text: isLong ? (isText ? "" : "[]") : "[]" })}>Type it</button>`;
  }
  const error = fault && jsonError(text);
  const go = () => {
    area.current.focus();
    area.current.setSelectionRange(error.index, error.index + 1);
  };
  return html`<textarea ref=${area} dir="auto" spellcheck=${isText} rows=${Math.min(14, Math.max(2, text.split("\n").length))} ...${shared} />
    ${error && html`<button type="button" class="code fault mono" aria-label="Go to the error" onClick=${go}>${error.excerpt}${"\n"}${" ".repeat(error.caret)}<span class="error">▲</span></button>`}`;
}

function Files({ id, port, value: { files }, change, streamed, onSample, onSize, over }) {
  const chooser = useRef(null);
  const { media_types: types } = fileOf(port);
  const isMany = isFiles(port);
  const noun = nounOf(port);
  const add = (uploads) => uploads.length && change({ files: isMany ? [...files, ...uploads] : uploads });
  const take = ({ target }) => {
    add([...target.files].map(uploadOf));
    target.value = "";
  };
  const isEmpty = !files.length;
  return html`<input ref=${chooser} type="file" hidden accept=${types?.join() || (noun === "picture" ? "image/*" : "")} multiple=${isMany} onChange=${take} />
    ${files.map((upload, index) => html`<${Preview} key=${index} upload=${upload} isPicture=${noun === "picture"} onSize=${index ? null : onSize} over=${index ? null : over}
      onRemove=${() => change({ files: files.filter((one) => one !== upload) })} />`)}
    <div class=${isEmpty ? "drop" : "actions start"}>
      ${isEmpty && html`<p class="hint">Drop a ${noun} here${noun === "picture" ? ", or paste it" : ""}</p>`}
      <button type="button" id=${id} class=${isEmpty ? "button" : "button small"} onClick=${() => chooser.current.click()}>${isMany ? "Add" : "Choose"} a${isEmpty || isMany ? "" : "nother"} ${noun}</button>
      ${noun === "sound" && html`<${Recorder} onSound=${(samples) => add([soundOf("recording", samples, streamed)])} />`}
      ${isEmpty && hasSample(port) && html`<button type="button" class="button" onClick=${onSample}>Try it with a ${noun} of ours</button>`}
    </div>`;
}

function Preview({ upload: { name, type, blob }, isPicture, onSize, over, onRemove }) {
  const [url, setUrl] = useState("");
  const large = useRef(null);
  const [size, setSize] = useState(/** @type {any} */ (null));
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  // A browser turns a picture by its EXIF orientation, as the server does.
  const measure = ({ target }) => {
    const found = { width: target.naturalWidth, height: target.naturalHeight };
    setSize(found);
    if (found.width) onSize?.(found);
  };
  const canvas = html`<div class="canvas"><img src=${url} alt=${`What is sent: ${name}`} onLoad=${measure} onError=${measure} />${over}</div>`;
  return html`<figure class="try-file">
    ${isPicture && url && (size?.width === 0 ? html`<p class="hint">This browser can't show ${type || "the file"}; the server may read it all the same.</p>` : canvas)}
    ${type.startsWith("audio/") && url && html`<audio controls src=${url} />`}
    <figcaption class="hint">
      <span class="cut">${name}</span> <span>${bytes(blob.size)}${size?.width ? `, ${size.width} × ${size.height}` : ""}</span>
      ${size?.width > 0 && html`<button type="button" class="button quiet small" onClick=${() => large.current.showModal()}>Enlarge</button>`}
      <button type="button" class="button quiet small" aria-label=${`Remove ${name}`} onClick=${onRemove}>Remove</button>
    </figcaption>
    <dialog class="large" ref=${large} aria-label=${name}>${size?.width > 0 && canvas}<button type="button" class="button" onClick=${() => large.current.close()}>Close</button></dialog>
  </figure>`;
}

function Recorder({ onSound }) {
  const [words, say] = useState(whyNoSound);
  const [seconds, count] = useState(-1);
  const going = useRef(/** @type {any} */ (null));
  useEffect(() => () => {
    going.current?.cancel();
    going.current = "left";
  }, []);
  useEffect(() => {
    const timer = seconds >= 0 && setTimeout(() => count(seconds + 1), 1000);
    return () => clearTimeout(timer);
  }, [seconds]);
  const press = async () => {
    say("");
    count(seconds < 0 ? 0 : -1);
    try {
      if (seconds < 0) {
        const started = await record();
        if (going.current === "left") started.cancel();
        else going.current = started;
      } else {
        const { stop } = going.current;
        going.current = null;
        onSound(await stop());
      }
    } catch (error) {
      count(-1);
      say(error.message);
    }
  };
  return html`<button type="button" class="button" disabled=${whyNoSound() !== ""} onClick=${press}>${seconds < 0 ? "Record" : `Stop, ${seconds} s`}</button>
    ${words && html`<p class="error" role="alert">${words}</p>`}`;
}
