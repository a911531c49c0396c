// @ts-check
/**
 * A text that this browser keeps under a name, or null. If it refuses, as where cookies are blocked,
 * the text lasts as long as the page.
 * @param {"localStorage" | "sessionStorage"} area
 * @param {string} name
 */
export function kept(area, name) {
  let text = null;
  const attempt = (act) => {
    try {
      return act(window[area]);
    } catch {
      return null; // a SecurityError
    }
  };
  return {
    read: () => attempt((storage) => storage.getItem(name)) ?? text,
    /** Null forgets it. */
    write(next) {
      text = next;
      attempt((storage) => (next === null ? storage.removeItem(name) : storage.setItem(name, next)));
    },
  };
}
