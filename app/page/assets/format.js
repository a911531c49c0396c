// @ts-check
/** Numbers as texts with their unit. What is unknown (null or undefined) is a dash. */
const DASH = "–";

const known = (value) => Number.isFinite(value);

// 0, 0.05, 8.1, 212
const short = (value) => {
  if (value >= 99.95 || value === 0) return count(value);
  return value.toFixed(value < 0.1 ? 2 : 1);
};

/** 12 345 */
export function count(value) {
  return known(value) ? String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f") : DASH;
}

/** 8.1 ms, 212 ms, 1.24 s, of milliseconds */
export function ms(value) {
  if (!known(value)) return DASH;
  if (value < 999.5) return `${short(value)} ms`;
  return `${(value / 1000).toFixed(value < 9995 ? 2 : 1)} s`;
}

/** 8.1/s, 212 requests/s */
export function rate(value, what = "") {
  return known(value) ? `${short(value)}${what}/s` : DASH;
}

/** 512 B, 12.3 MB */
export function bytes(value) {
  if (!known(value)) return DASH;
  const step = value < 999.5 ? 0 : Math.min(4, Math.floor(Math.log10(value * 1.0005) / 3));
  const scaled = value / 1000 ** step;
  return `${scaled.toFixed(step === 0 || scaled >= 99.95 ? 0 : 1)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
}

/** 12 s, 3 min 5 s, 2 h 14 min, 3 d 4 h */
export function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** 85 %, of a part of 1 */
export function percent(value) {
  return known(value) ? `${Math.round(value * 100)} %` : DASH;
}

/** 1 request, 12 requests */
export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}
