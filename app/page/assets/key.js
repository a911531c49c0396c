// @ts-check
/** The dialog that asks for the API key, and forgets it; a button in the top bar opens it too. */
import { html, useEffect, useRef, useState } from "./preact.js";
import { api } from "./api.js";

export function Key() {
  const [question, setQuestion] = useState(null);
  useEffect(() => {
    api.askKey = (wrong) =>
      new Promise((resolve) => {
        const answer = (key) => (setQuestion(null), resolve(key));
        setQuestion({ wrong, answer });
      });
  }, []);
  return html`
    ${api.key !== null && html`<button class="button quiet" title="The API key in use" onClick=${() => api.unlock()}>Key</button>`}
    ${question && html`<${Dialog} ...${question} />`}`;
}

function Dialog({ wrong, answer }) {
  const dialog = useRef();
  const input = useRef();
  const kept = api.key !== null;
  useEffect(() => dialog.current.showModal(), []);
  const submit = (event) => {
    event.preventDefault();
    answer(input.current.value.trim());
  };
  const forget = () => {
    api.key = null;
    answer(null);
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title" onCancel=${() => answer(null)}>
    <form onSubmit=${submit}>
      <h2 id="key-title">${kept && !wrong ? "API key" : "This server asks for an API key"}</h2>
      ${wrong && html`<p class="error" role="alert">The server did not accept that key.</p>`}
      <label>API key <input class="field mono" type="password" ref=${input} autocomplete="off" required autofocus /></label>
      <p class="hint">It stays in this tab, and is forgotten when the tab is closed.</p>
      <div class="actions">
        ${kept && html`<button type="button" class="button" onClick=${forget}>Forget it</button>`}
        <button type="button" class="button" onClick=${() => answer(null)}>Cancel</button>
        <button class="button primary">Use this key</button>
      </div>
    </form>
  </dialog>`;
}
