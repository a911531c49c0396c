// @ts-check
const sum = (counts) => Object.values(counts).reduce((whole, one) => whole + one, 0);

/** Give a status that did not come as an event the rates since the one before, from its counters. */
export function withRates(now, before) {
  const seconds = now.uptime_s - before?.uptime_s;
  if (!(seconds > 0)) return now; // it is the first since the page was opened, or the server started
  for (const one of now.pipelines) {
    const old = before.pipelines.find(({ name, version }) => name === one.name && version === one.version);
    if (!old) continue;
    const rate = (count) => Math.max(0, count(one) - count(old)) / seconds;
    one.succeeded_per_s = rate(({ succeeded }) => succeeded);
    one.failed_per_s = rate(({ failed }) => sum(failed));
    one.refused_per_s = rate(({ refused }) => sum(refused));
    if (one.refused_per_s && ["idle", "calm", "busy"].includes(one.mood)) one.mood = "refusing";
    if (one.succeeded_per_s + one.failed_per_s && one.mood === "idle") one.mood = "calm";
  }
  return now;
}
