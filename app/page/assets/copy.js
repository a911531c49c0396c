// @ts-check
import { html, useState } from "./vendor/htm/standalone.module.js";

/**
 * Copy a text. Return whether it worked: the clipboard's own API is for secure origins alone.
 * @param {string} text
 * @returns {Promise<boolean>}
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** A button that copies. @param {{what?: string, text: string}} props `what`: what the text is */
export function Copy({ what = "", text }) {
  const [said, say] = useState("");
  const copy = async () => {
    say((await copyText(text)) ? "Copied" : "Not allowed here");
    setTimeout(() => say(""), 2000);
  };
  return html`<button type="button" class="button quiet small" onClick=${copy}><span aria-live="polite">${said || `Copy ${what}`.trim()}</span></button>`;
}

/** Let the browser save a file. @param {string} name @param {Blob | string} content */
export function save(name, content) {
  const url = URL.createObjectURL(new Blob([content]));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
