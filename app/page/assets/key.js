// @ts-check
/** The dialog that asks for the API key, shows that one is in use, and forgets it. */
import { html, useEffect, useRef, useState } from "./vendor/htm/standalone.module.js";
import { api } from "./api.js";

/**
 * @typedef {{wrong: boolean, answer: (key: string | null) => void}} Question
 */

/** The button in the top bar, and the dialog that opens by itself when a call needs a key. */
export function Key() {
  const [question, setQuestion] = useState(/** @type {Question | null} */ (null));
  useEffect(() => {
    api.askKey = (wrong) =>
      new Promise((resolve) => {
        setQuestion({ wrong, answer: (/** @type {string | null} */ key) => (setQuestion(null), resolve(key)) });
      });
  }, []);
  return html`
    ${api.key !== null && html`<button class="button quiet" onClick=${() => void api.unlock()} title="The API key in use">Key</button>`}
    ${question && html`<${KeyDialog} ...${question} />`}`;
}

/** @param {Question} props */
function KeyDialog({ wrong, answer }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const kept = api.key !== null;
  useEffect(() => dialog.current?.showModal(), []);
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    const key = input.current?.value.trim();
    if (key) answer(key);
  };
  const forget = () => {
    api.key = null;
    answer(null);
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title" onCancel=${() => answer(null)}>
    <form onSubmit=${submit}>
      <h2 id="key-title">${kept && !wrong ? "API key" : "This server asks for an API key"}</h2>
      ${wrong && html`<p class="error" role="alert">The server did not accept that key.</p>`}
      <label>API key <input class="field mono" type="password" ref=${input} autocomplete="off"
        spellcheck=${false} required aria-describedby="key-hint" autofocus /></label>
      <p class="hint" id="key-hint">${kept && !wrong ? "A key is in use. " : ""}It stays in this tab and is forgotten when the tab is closed.</p>
      <div class="actions">
        ${kept && html`<button type="button" class="button" onClick=${forget}>Forget it</button>`}
        <button type="button" class="button" onClick=${() => answer(null)}>Cancel</button>
        <button class="button primary">Use this key</button>
      </div>
    </form>
  </dialog>`;
}
