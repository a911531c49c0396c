// @ts-check
/** Records sound, as 16-bit samples at 16 kHz of one channel. */

export const RATE = 16_000; // samples a second
const HEADER_BYTES = 44;

/** Return why this page may not record, or "". */
export function whyNoSound() {
  if (!window.isSecureContext) return "A browser records only on https pages and on localhost. Choose a file instead.";
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return "This browser can't record. Choose a file instead.";
  return "";
}

/**
 * Start to record. `stop` ends it and gives the samples. Errors have words for the person.
 * @returns {Promise<{stop: () => Promise<Int16Array>, cancel: () => void}>}
 */
export async function record() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch (error) {
    const words = { NotAllowedError: "is not allowed: allow it in the browser's address bar", NotFoundError: "was not found" }[error.name];
    throw new Error(`The microphone ${words ?? `did not start (${error.name})`}. Or choose a file.`);
  }
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.ondataavailable = ({ data }) => void pieces.push(data);
  const ended = new Promise((resolve) => (recorder.onstop = resolve));
  const cancel = () => {
    if (recorder.state !== "inactive") recorder.stop();
    for (const track of stream.getTracks()) track.stop();
  };
  recorder.start();
  return {
    cancel,
    stop: async () => {
      cancel();
      await ended;
      const context = new OfflineAudioContext(1, 1, RATE); // what it decodes has its rate
      const sound = await context.decodeAudioData(await new Blob(pieces).arrayBuffer());
      return toInt16(sound.getChannelData(0));
    },
  };
}

/** @param {Float32Array} samples -1 to 1 */
export const toInt16 = (samples) => Int16Array.from(samples, (one) => Math.round(Math.max(-1, Math.min(1, one)) * 32767));

/**
 * Return the samples as a WAV file.
 * @param {Int16Array} samples
 * @returns {ArrayBuffer}
 */
export function wavOf(samples) {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + samples.length * 2));
  const text = (at, word) => [...word].forEach((one, index) => view.setUint8(at + index, one.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  // Bytes of the format; PCM of one channel; the rate; bytes a second; bytes and bits of a sample.
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, RATE, 4], [28, RATE * 2, 4], [32, 2, 2], [34, 16, 2]].forEach(([at, value, size]) =>
    size === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true),
  );
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((one, index) => view.setInt16(HEADER_BYTES + index * 2, one, true));
  return view.buffer;
}
