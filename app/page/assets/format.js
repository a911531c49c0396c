// @ts-check
/** Numbers as texts with their unit. `null` and what is not finite become a dash. */

const DASH = "–";
const GAP = "\u202f"; // a narrow space that does not break

/** @typedef {number | null | undefined} Value */

/**
 * @param {Value} value
 * @returns {value is number}
 */
const known = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * Three significant digits: 0.5, 8.1, 99.9, 212.
 * @param {number} value
 */
function short(value) {
  if (value === 0) return "0";
  if (value < 0.1) return value.toFixed(2);
  return value < 99.95 ? value.toFixed(1) : count(value);
}

/**
 * A whole number with its thousands apart: 12 345.
 * @param {Value} value
 */
export function count(value) {
  if (!known(value)) return DASH;
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, GAP);
}

/**
 * A time in milliseconds: 8.1 ms, 212 ms, 1.24 s.
 * @param {Value} value milliseconds
 */
export function ms(value) {
  if (!known(value)) return DASH;
  if (value >= 999.5) return `${(value / 1000).toFixed(value < 9995 ? 2 : 1)} s`;
  return `${short(value)} ms`;
}

/**
 * A rate: 0/s, 8.1/s, 1 204/s, 1 204 requests/s.
 * @param {Value} value per second
 * @param {string} unit what is counted
 */
export function rate(value, unit = "") {
  return known(value) ? `${short(value)}${unit}/s` : DASH;
}

/**
 * @param {Value} value bytes
 */
export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 999.5 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${step === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[step]}`;
}

/**
 * A long time in its two largest units: 12 s, 3 min 5 s, 2 h 14 min, 3 d 4 h.
 * @param {Value} value seconds
 */
export function duration(value) {
  if (!known(value)) return DASH;
  const s = Math.max(0, Math.floor(value));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/**
 * @param {Value} value a part of 1
 */
export function percent(value) {
  return known(value) ? `${Math.round(value * 100)} %` : DASH;
}

/**
 * A count with its noun: 1 request, 12 requests.
 * @param {Value} value
 * @param {string} one
 * @param {string} [many]
 */
export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}
