// @ts-check
import { html, useState } from "./preact.js";

/** Copy a text. Return whether it worked. @param {string} text */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // The clipboard is for secure origins alone.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** A button that copies. @param {{what?: string, text: string}} props */
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
