// @ts-check
/** Records sound, as 16-bit samples at 16 kHz of one channel. */

export const RATE = 16_000; // samples a second

export function whyNoSound() {
  if (!window.isSecureContext) return "A browser records only on https pages and on localhost. Choose a file instead.";
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return "This browser can't record. Choose a file instead.";
  return "";
}

/** Start to record. `stop` ends it and gives the samples. Errors have words for the person. */
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
  const cancel = () => stream.getTracks().forEach((track) => track.stop());
  recorder.start();
  return {
    cancel,
    stop: async () => {
      recorder.stop();
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

/** Return samples as a WAV file. @param {Int16Array} samples */
export function wavOf(samples) {
  const size = samples.byteLength;
  // "RIFF", bytes, "WAVE", "fmt ", its bytes, PCM of one channel, rate, bytes a second, 2 bytes and 16 bits, "data", bytes.
  const head = [0x46464952, size + 36, 0x45564157, 0x20746d66, 16, 0x10001, RATE, RATE * 2, 0x100002, 0x61746164, size];
  return new Blob([new Uint32Array(head), /** @type {any} */ (samples)]);
}
