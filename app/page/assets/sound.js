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
 * Start to record. `stop` ends it and gives the samples; `cancel` throws them away.
 * @returns {Promise<{stop: () => Promise<Int16Array>, cancel: () => void}>}
 * @throws {Error} with words for the person, if the browser or the person does not allow it
 */
export async function record() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "NotAllowedError") throw new Error("The microphone is not allowed. Allow it in the browser's address bar, or choose a file.");
    if (name === "NotFoundError") throw new Error("There is no microphone. Choose a file instead.");
    throw new Error(`The microphone did not start (${name}). Choose a file instead.`);
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
      return samplesOf(new Blob(pieces));
    },
  };
}

/** Decode a file of sound, at 16 kHz and with one channel. @param {Blob} file */
export async function samplesOf(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const sound = await context.decodeAudioData(await file.arrayBuffer()); // it has the context's rate
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel += 1) {
    const data = sound.getChannelData(channel);
    for (let at = 0; at < mono.length; at += 1) mono[at] += data[at] / sound.numberOfChannels;
  }
  return toInt16(mono);
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
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 2, true); // bytes a second
  view.setUint16(32, 2, true); // bytes of a sample
  view.setUint16(34, 16, true); // bits of a sample
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((one, index) => view.setInt16(HEADER_BYTES + index * 2, one, true));
  return view.buffer;
}
