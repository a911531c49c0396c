// @ts-check
/** /docs: load the document with the API key, and show it by Swagger UI. */

const storedKey = kept("sessionStorage", "penstock-key"); // the page at / uses the same
const storedTheme = kept("localStorage", "penstock-theme"); // set on the page at /

/**
 * A text that this browser keeps under a name, or null. If it refuses, as where cookies are blocked,
 * the text lasts as long as this page. As storage.js of the page at /, which may be turned off.
 * @param {"localStorage" | "sessionStorage"} area
 * @param {string} name
 */
function kept(area, name) {
  /** @type {string | null} */
  let text = null;
  const attempt = (/** @type {(storage: Storage) => any} */ act) => {
    try {
      return act(window[area]);
    } catch {
      return null; // a SecurityError
    }
  };
  return {
    /** @returns {string | null} */
    read: () => attempt((storage) => storage.getItem(name)) ?? text,
    /** Null forgets it. @param {string | null} next */
    write(next) {
      text = next;
      attempt((storage) => (next === null ? storage.removeItem(name) : storage.setItem(name, next)));
    },
  };
}

/** @param {string} name */
function meta(name) {
  return /** @type {HTMLMetaElement} */ (document.querySelector(`meta[name="${name}"]`)).content;
}

const home = /** @type {HTMLAnchorElement} */ (document.getElementById("home"));
const form = /** @type {HTMLFormElement} */ (document.getElementById("ask"));
const input = /** @type {HTMLInputElement} */ (document.getElementById("key"));
const why = /** @type {HTMLElement} */ (document.getElementById("why"));
const change = /** @type {HTMLButtonElement} */ (document.getElementById("change"));
const docs = /** @type {HTMLElement} */ (document.getElementById("docs"));

if (meta("penstock-page") === "on") home.href = "./";

const system = matchMedia("(prefers-color-scheme: dark)");
function showTheme() {
  const chosen = storedTheme.read();
  const dark = chosen === "dark" || (chosen !== "light" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.toggle("dark-mode", dark); // Swagger UI's name
}
system.addEventListener("change", showTheme);

/**
 * Ask for the key, and say why.
 * @param {string} text
 * @param {boolean} [wrong]
 */
function ask(text, wrong = false) {
  why.textContent = text;
  why.classList.toggle("wrong", wrong);
  docs.replaceChildren();
  input.value = "";
  form.hidden = false;
  change.hidden = true;
  input.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  storedKey.write(input.value.trim());
  void load();
});
change.addEventListener("click", () => ask("Another key replaces the one in use."));

/** @param {string} text */
function say(text) {
  docs.replaceChildren(Object.assign(document.createElement("p"), { textContent: text }));
}

async function load() {
  const key = storedKey.read();
  if (!key && meta("penstock-key") === "needed") {
    ask("This server asks for an API key. It stays in this tab and is forgotten when the tab is closed.");
    return;
  }
  let response;
  try {
    /** @type {Record<string, string>} */
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    response = await fetch("openapi.json", { headers, cache: "no-store" });
  } catch {
    say("The server does not answer. Reload this page when it runs again.");
    return;
  }
  if (response.status === 401) {
    storedKey.write(null);
    ask(key ? "The server did not accept that key." : "This server asks for an API key.", key !== null);
    return;
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    say(`The API's document can't be loaded: ${problem.detail ?? `status ${response.status}`}`);
    return;
  }
  form.hidden = true;
  change.hidden = !key;
  show(await response.json(), key);
}

/**
 * @param {any} description the OpenAPI document
 * @param {string | null} key
 */
function show(description, key) {
  document.title = `${description.info.title} API docs`;
  // Where the browser has found this page, whatever a proxy has cut off its path.
  const root = new URL(".", location.href).pathname.replace(/\/$/, "");
  // @ts-expect-error: a global of Swagger UI's script
  const ui = SwaggerUIBundle({
    spec: { ...description, servers: [{ url: root || "/" }] },
    domNode: docs,
    deepLinking: true,
    displayRequestDuration: true,
    syntaxHighlight: { theme: "monokai" }, // the numbers of the default are too dark to read
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // it would send the document to another server
    plugins: [collapsedErrors],
    onComplete: () => {
      if (key && description.components?.securitySchemes?.key) ui.preauthorizeApiKey("key", key);
    },
  });
}

/**
 * A plugin of Swagger UI: the error responses of an operation are behind one line that opens.
 * @param {any} system
 */
function collapsedErrors({ React }) {
  const Errors = React.createContext(null);
  const isError = (/** @type {string} */ code) => /^[45]/.test(code);

  /**
   * "9 error responses, all application/problem+json"
   * @param {any[]} errors
   */
  function summary(errors) {
    const kinds = new Set(
      errors.flatMap((response) => response.get("content")?.keySeq().toArray() ?? []),
    );
    const all = kinds.size === 1 ? `, ${errors.length > 1 ? "all " : ""}${[...kinds][0]}` : "";
    return `${errors.length} error response${errors.length > 1 ? "s" : ""}${all}`;
  }

  return {
    wrapComponents: {
      responses: (/** @type {any} */ Original) =>
        function Responses(/** @type {any} */ props) {
          const [open, setOpen] = React.useState(false);
          const errors = props.responses.filter((/** @type {any} */ _, /** @type {string} */ code) => isError(code));
          const value = {
            open,
            toggle: () => setOpen(!open),
            first: errors.keySeq().first(),
            text: summary(errors.valueSeq().toArray()),
          };
          return React.createElement(
            Errors.Provider,
            { value },
            React.createElement(Original, props),
          );
        },
      response: (/** @type {any} */ Original) =>
        function Response(/** @type {any} */ props) {
          const errors = React.useContext(Errors);
          const row = React.createElement(Original, props);
          if (!errors || !isError(props.code)) return row;
          return React.createElement(
            React.Fragment,
            null,
            props.code === errors.first &&
              React.createElement(
                "tr",
                { className: "response errors" },
                React.createElement(
                  "td",
                  { colSpan: 3 },
                  React.createElement(
                    "button",
                    { type: "button", "aria-expanded": errors.open, onClick: errors.toggle },
                    errors.text,
                  ),
                ),
              ),
            errors.open && row,
          );
        },
    },
  };
}

showTheme();
void load();
