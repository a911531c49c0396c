// @ts-check
/** Parts of the page that are loaded when they are first shown, with their style sheet. */
import { html, useEffect, useState } from "./vendor/htm/standalone.module.js";

/** @type {Map<string, Promise<any>>} */
const modules = new Map();

/** @param {string} file its name without .js; its style sheet has the same */
function load(file) {
  let loading = modules.get(file);
  if (!loading) {
    loading = Promise.all([import(`./${file}.js`), loadStyle(file)]).then(([module]) => module);
    loading.catch(() => modules.delete(file)); // the next one who asks tries again
    modules.set(file, loading);
  }
  return loading;
}

/** @param {string} file */
function loadStyle(file) {
  return new Promise((resolve, reject) => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(`${file}.css`, import.meta.url).href;
    link.onload = resolve;
    link.onerror = reject;
    document.head.append(link);
  });
}

/**
 * Return a component that loads `name` of the module `file`, then shows it with its own props.
 * @param {string} file
 * @param {string} name
 * @param {string} what it is called if it can't be loaded
 */
export function lazy(file, name, what) {
  return (/** @type {Record<string, unknown>} */ props) => {
    const [part, setPart] = useState(/** @type {{Part: any} | null} */ (null));
    const [failed, setFailed] = useState(false);
    const [tries, setTries] = useState(0);
    useEffect(() => {
      let gone = false;
      load(file).then(
        (module) => gone || setPart({ Part: module[name] }),
        () => gone || setFailed(true),
      );
      return () => void (gone = true);
    }, [tries]);
    const again = () => {
      setFailed(false);
      setTries(tries + 1);
    };
    if (part) return html`<${part.Part} ...${props} />`;
    if (!failed) return null;
    return html`<div class="empty"><p>${what} could not be loaded.</p>
      <p><button class="button" onClick=${again}>Try again</button></p></div>`;
  };
}
