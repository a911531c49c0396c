// @ts-check
/**
 * Yield the server-sent events of a response, those that come together as one list.
 * @param {Response} response
 * @returns {AsyncGenerator<{name: string, data: string}[]>}
 */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const field = (event, name) => new RegExp(`^${name}: (.*)$`, "m").exec(event)?.[1] ?? "";
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    yield events.map((event) => ({ name: field(event, "event"), data: field(event, "data") }));
  }
}
