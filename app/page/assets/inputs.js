// @ts-check
/** A field of the form for each declared input. */

import { html, useEffect, useRef, useState } from "./preact.js";
import { bytes } from "./format.js";
import { jsonError } from "./json_text.js";
import { exampleOf, faultOf, fileOf, isFiles, isUpload } from "./request.js";
import { picture, sound } from "./samples.js";
import { record, wavOf, whyNoSound } from "./sound.js";

function nounOf(port) {
  const { kind, media_types: types } = fileOf(port);
  return kind === "image" ? "picture" : types?.some((type) => type.startsWith("audio/")) ? "sound" : "file";
}

const hasSample = (port) => !fileOf(port).media_types?.some((type) => !/^(audio\/|image\/(\*|jpeg)$)/.test(type));

// A stream has the samples alone: the header of a WAV file says how many come.
const soundOf = (name, samples, streamed) =>
  streamed ? new File([samples], `${name}.raw`) : new File([wavOf(samples)], `${name}.wav`, { type: "audio/wav" });

/** Return a file for an input, or null. @param {import("./request.js").Port} port @param {boolean} streamed */
export async function sampleOf(port, streamed) {
  if (!hasSample(port)) return null;
  const noun = nounOf(port);
  if (noun === "sound") return soundOf("voice", sound(), streamed);
  return noun === "picture" ? new File([await picture()], "cup.jpg", { type: "image/jpeg" }) : new File(["Hello from Penstock.\n"], "hello.txt", { type: "text/plain" });
}

/** The form before anything is typed. @param {import("./request.js").Port[]} ports */
export const startOf = (ports) => Object.fromEntries(ports.map((port) => [port.name, { given: !port.optional, text: exampleOf(port), files: [] }]));

/** The form with an empty file for the code to name wherever none is chosen yet. */
export const filled = (ports, values) => Object.fromEntries(ports.map((port) => {
  const value = values[port.name];
  return [port.name, isUpload(port) && !value.files.length ? { ...value, files: [placeholderOf(port)] } : value];
}));

function placeholderOf(port) {
  const [name, type] = { picture: ["photo.jpg", "image/jpeg"], sound: ["sound.wav", "audio/wav"], file: ["file.bin", ""] }[nounOf(port)];
  return new File([], name, { type });
}

/** @param {any} props `checked`: say what is missing; `over`: what is drawn on the picture */
export function Input(props) {
  const { port, value, change, checked } = props;
  const { name, kind, dtype, shape, items, optional, media_types: types, description } = port;
  const id = `input-${name}`;
  const fault = faultOf(port, value);
  const words = [kind, items && `of ${items.kind}`, dtype, shape && `[${shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]`, types?.join(", ")];
  return html`<div class="try-input" role="group" aria-label=${name} data-input=${name}>
    <div class="try-name">
      <label for=${isUpload(port) ? "" : id}><b>${name}</b></label> <span class="hint">${words.filter(Boolean).join(" ")}</span>
      ${optional && html`<label class="hint"><input type="checkbox" checked=${value.given} onChange=${() => change({ given: !value.given })} /> send it</label>`}
    </div>
    ${description && html`<p class="hint">${description}</p>`}
    ${value.given && html`<${isUpload(port) ? Files : Typed} ...${props} id=${id} fault=${fault} />`}
    ${fault && (checked || !isUpload(port)) && html`<p class="error" id=${`${id}-fault`} role="alert">${fault}</p>`}
  </div>`;
}

function Typed({ id, port: { kind }, value: { text }, change, fault }) {
  const area = useRef(null);
  const isText = kind === "text";
  const shared = {
    id,
    class: isText ? "field" : "field mono",
    value: text,
    "aria-invalid": fault !== "",
    "aria-describedby": fault && `${id}-fault`,
    onInput: ({ target }) => change({ text: target.value }),
  };
  if (kind === "boolean") return html`<select ...${shared}>${["true", "false"].map((one) => html`<option value=${one}>${one}</option>`)}</select>`;
  if (kind === "integer" || kind === "number") return html`<input inputmode="decimal" ...${shared} />`;
  const error = fault && jsonError(text);
  const go = () => {
    area.current.focus();
    area.current.setSelectionRange(error.index, error.index + 1);
  };
  return html`<textarea ref=${area} dir="auto" spellcheck=${isText} rows=${Math.min(14, Math.max(2, text.split("\n").length))} ...${shared} />
    ${error && html`<button type="button" class="code fault mono" onClick=${go}>${error.excerpt}${"\n"}${" ".repeat(error.caret)}<span class="error">▲</span></button>`}`;
}

function Files({ port, value: { files }, change, streamed, onSample, onSize, over }) {
  const chooser = useRef(null);
  const isMany = isFiles(port);
  const noun = nounOf(port);
  const isPicture = noun === "picture";
  const add = (more) => change({ files: isMany ? [...files, ...more] : more });
  const take = ({ target }) => {
    if (target.files.length) add([...target.files]);
    target.value = "";
  };
  const isEmpty = !files.length;
  return html`<input ref=${chooser} type="file" hidden accept=${fileOf(port).media_types?.join() || (isPicture ? "image/*" : "")} multiple=${isMany} onChange=${take} />
    ${files.map((file, index) => html`<${Preview} key=${index} file=${file} isPicture=${isPicture} onSize=${index ? null : onSize} over=${index ? null : over}
      onRemove=${() => change({ files: files.filter((one) => one !== file) })} />`)}
    <div class=${isEmpty ? "drop" : "actions start"}>
      ${isEmpty && html`<p class="hint">Drop a ${noun} here${isPicture ? ", or paste it" : ""}</p>`}
      <button type="button" class=${isEmpty ? "button" : "button small"} onClick=${() => chooser.current.click()}>${isMany ? "Add" : "Choose"} a${isEmpty || isMany ? "" : "nother"} ${noun}</button>
      ${noun === "sound" && html`<${Recorder} onSound=${(samples) => add([soundOf("recording", samples, streamed)])} />`}
      ${isEmpty && hasSample(port) && html`<button type="button" class="button" onClick=${onSample}>Try it with a ${noun} of ours</button>`}
    </div>`;
}

function Preview({ file, isPicture, onSize, over, onRemove }) {
  const { name, type } = file;
  const [url, setUrl] = useState("");
  const [size, setSize] = useState(null);
  const figure = useRef(null);
  useEffect(() => {
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  // A browser turns a picture by its EXIF orientation, as the server does.
  const measure = ({ target: { naturalWidth: width, naturalHeight: height } }) => {
    setSize({ width, height });
    onSize?.(width ? { width, height } : null);
  };
  const canvas = html`<div class="canvas"><img src=${url} alt=${`What is sent: ${name}`} onLoad=${measure} onError=${measure} />${over}</div>`;
  return html`<figure class="try-file" ref=${figure}>
    ${isPicture && url && (size?.width === 0 ? html`<p class="hint">This browser can't show ${type || "the file"}; the server may read it all the same.</p>` : canvas)}
    ${type.startsWith("audio/") && url && html`<audio controls src=${url} />`}
    <figcaption class="hint">
      <span class="cut">${name}</span> <span>${bytes(file.size)}${size?.width ? `, ${size.width} × ${size.height}` : ""}</span>
      ${size?.width > 0 && html`<button type="button" class="button quiet small" onClick=${() => document.fullscreenElement ? document.exitFullscreen() : figure.current.requestFullscreen()}>Full screen</button>`}
      <button type="button" class="button quiet small" aria-label=${`Remove ${name}`} onClick=${onRemove}>Remove</button>
    </figcaption>
  </figure>`;
}

function Recorder({ onSound }) {
  const [words, say] = useState(whyNoSound);
  const [isOn, turn] = useState(false);
  const going = useRef(null);
  useEffect(() => () => {
    going.current?.cancel?.();
    going.current = "left";
  }, []);
  const press = async () => {
    say("");
    turn(!isOn);
    try {
      if (isOn) return onSound(await going.current.stop());
      const started = await record();
      if (going.current === "left") started.cancel();
      else going.current = started;
    } catch (error) {
      turn(false);
      say(error.message);
    }
  };
  return html`<button type="button" class="button" disabled=${whyNoSound() !== ""} onClick=${press}>${isOn ? "Stop recording" : "Record"}</button>
    ${words && html`<p class="error" role="alert">${words}</p>`}`;
}
