// @ts-check
/** A picture and a sound of ours, to try a pipeline with. */

import { RATE, toInt16 } from "./sound.js";

/** Draw a cup of coffee beside a line of text. @returns {Promise<Blob>} a JPEG */
export function picture() {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 640, height: 480 });
  const draw = canvas.getContext("2d");
  const oval = (colour, x, y, w, h) => {
    draw.fillStyle = colour;
    draw.beginPath();
    draw.ellipse(x, y, w, h, 0, 0, 7);
    draw.fill();
  };
  draw.fillStyle = "#b98a5d";
  draw.fillRect(0, 0, 640, 480);
  oval("#f4f1ea", 320, 285, 230, 105);
  draw.strokeStyle = "#f8f6f1";
  draw.lineWidth = 24;
  draw.beginPath();
  draw.arc(478, 222, 44, -1.6, 1.8);
  draw.stroke();
  draw.fillStyle = "#fbfaf6";
  draw.beginPath();
  draw.moveTo(170, 190);
  draw.bezierCurveTo(180, 340, 260, 320, 320, 320);
  draw.bezierCurveTo(380, 320, 460, 340, 470, 190);
  draw.fill();
  oval("#fbfaf6", 320, 190, 150, 58);
  oval("#3b2012", 320, 194, 134, 47);
  oval("#c08a52", 320, 196, 104, 34);
  oval("#efdcbd", 320, 198, 52, 18);
  draw.fillStyle = "#20140c";
  draw.font = "600 48px sans-serif";
  draw.textAlign = "center";
  draw.fillText("PENSTOCK 42", 320, 82);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob), "image/jpeg", 0.92));
}

/** Make 3 s of noise with two stretches that are like a voice. @returns {Int16Array} */
export function sound() {
  const samples = new Float32Array(3 * RATE);
  samples.forEach((_, at) => {
    const time = at / RATE;
    const isVoice = (time > 0.5 && time < 1.2) || (time > 1.9 && time < 2.5);
    samples[at] = (Math.random() - 0.5) * 0.004 + (isVoice ? 0.2 * Math.sin(Math.PI * 360 * time) : 0);
  });
  return toInt16(samples);
}
