// What `shapes.js` recognises, where `json_text.js` finds an error, what a form begins with, how events
// are read, and the rates of a page that gets none.

import assert from "node:assert/strict";
import { test } from "node:test";
import { jsonError } from "../../../../app/page/assets/json_text.js";
import { exampleOf, faultOf } from "../../../../app/page/assets/request.js";
import { withRates } from "../../../../app/page/assets/rates.js";
import { ask, timingOf } from "../../../../app/page/assets/send.js";
import { wavOf } from "../../../../app/page/assets/sound.js";
import { find } from "../../../../app/page/assets/shapes.js";

const SIZE = { width: 640, height: 480 };
const BOX = [[10, 20], [30, 20], [30, 60], [10, 60]];
const grid = (height, width, value) => Array.from({ length: height }, () => Array(width).fill(value));
const shapesOf = (answer) => find(answer, SIZE).shapes;

const PLACES = {
  "YoloTensor's": { box: [10, 20, 30, 60] },
  "RapidOCR's": { box: BOX },
  "two corners": { bbox: [[10, 20], [30, 60]] },
  "a corner and the size": { bbox_xywh: [10, 20, 20, 40] },
  sides: { x1: 10, y1: 20, x2: 30, y2: 60 },
  "named sides": { boundingBox: { Left: 10, Top: 20, Width: 20, Height: 40 } },
  polygon: { polygon: BOX },
  points: { points: BOX.map(([x, y]) => ({ x, y })) },
  "a flat polygon": { segmentation: [BOX.flat()] },
};
for (const [name, place] of Object.entries(PLACES)) {
  test(`a place: ${name}`, () => {
    const [shape, ...others] = shapesOf({ result: [{ ...place, label: "cup", score: 0.5 }] });
    assert.deepEqual(others, []);
    assert.deepEqual(shape.points, BOX);
    assert.equal(shape.closed, true);
  });
}

test("a place has the label and score of its object, and the path of its row", () => {
  const [shape] = shapesOf({ result: [{ box: [1, 2, 3, 4], class: 7, label: "cup", score: 0.5 }] });
  assert.deepEqual([shape.label, shape.score, shape.path], ["cup", 0.5, "/result/0"]);
  assert.equal(shapesOf([{ box: [1, 2, 3, 4], class: 7 }])[0].label, "class 7");
});

test("parallel lists", () => {
  const answer = { boxes: [[10, 20, 30, 60], [1, 1, 2, 2]], scores: [0.5, 0.25], classes: [1, 2], labels: ["cup", "mug"] };
  const found = shapesOf(answer).map(({ path, label, score }) => [path, label, score]);
  assert.deepEqual(found, [["/boxes/0", "cup", 0.5], ["/boxes/1", "mug", 0.25]]);
  assert.equal(shapesOf({ result: "42", boxes: [[10, 20, 30, 60]] }).length, 1);
  assert.equal(shapesOf({ boxes: [[[10, 20, 30, 60]]], scores: [[0.5]] })[0].score, 0.5);
});

test("coordinates of 0 to 1 are parts of the size", () => {
  assert.deepEqual(shapesOf({ boxes: [[0.5, 0.25, 1, 0.5]] })[0].points, [[320, 120], [640, 120], [640, 240], [320, 240]]);
});

test("keypoints", () => {
  const [shape] = shapesOf({ people: [{ keypoints: [[1, 2, 0.9], [3, 4, 0.8]] }] });
  assert.deepEqual([shape.closed, shape.points], [false, [[1, 2], [3, 4]]]);
});

test("masks of classes, of probabilities, in a list, in a box", () => {
  const of = (answer) => find(answer, SIZE).masks.map(({ path, classes, box }) => [path, classes, box]);
  assert.deepEqual(of({ mask: grid(24, 32, 1) }), [["/mask", true, null]]);
  assert.deepEqual(of({ result: grid(48, 64, 0.5) }), [["/result", false, null]]);
  assert.deepEqual(of({ masks: [grid(24, 32, 1), grid(24, 32, 0)] }), [["/masks/0", true, null], ["/masks/1", true, null]]);
  assert.deepEqual(of([{ box: [10, 20, 30, 60], mask: grid(28, 28, 1) }]), [["/0/mask", true, BOX]]);
  assert.deepEqual(find({ mask: grid(24, 32, 1) }, null).masks, []);
});

test("classes and pictures", () => {
  const bars = (answer) => find(answer, null).rankings.map((rows) => rows.map(({ label, score }) => [label, score]));
  assert.deepEqual(bars({ result: 967, label: "espresso", class: 967, score: 0.5 }), [[["espresso", 0.5]]]);
  assert.deepEqual(bars({ label: "a", score: 1, top: [{ label: "a", class: 0, score: 1 }, { label: "b", class: 1, score: 0 }] }), [[["a", 1], ["b", 0]]]);
  assert.deepEqual(bars({ labels: ["a", "b"], scores: [0.25, 0.75] }), [[["b", 0.75], ["a", 0.25]]]);
  assert.match(find({ result: `iVBORw0KGgo${"A".repeat(99)}` }, null).pictures[0], /^data:image\/png;base64,/);
});

test("what is nothing of these", () => {
  const nothing = { shapes: [], isCut: false, masks: [], rankings: [], pictures: [] };
  for (const answer of [null, 3, "x", [], {}, { boxes: [] }, { boxes: [null] }, { box_scores: [1, 2, 3, 4] }, { result: [[1, 2, 3, 4]] }, { bbox: null }, { points: 3 }, { mask: [] }]) {
    assert.deepEqual(find(answer, SIZE), nothing, JSON.stringify(answer));
  }
});

test("many shapes are cut, and many values walked no further", () => {
  const { shapes, isCut } = find({ boxes: Array(1000).fill([1, 2, 3, 4]) }, SIZE);
  assert.deepEqual([shapes.length, isCut], [500, true]);
  assert.ok(find(Array.from({ length: 100_000 }, () => ({ box: [1, 2, 3, 4] })), SIZE).isCut);
});

const ERRORS = {
  "[1, 2": [5, /the text ends, expected "," or "]"/],
  "[1,\n 2,\n x]": [9, /^Line 3, column 2: found "x", expected a value/],
  '{"a" 1}': [5, /expected ":"/],
  "{a: 1}": [1, /a key in double quotes/],
  '["a\nb"]': [3, /the end of the string/],
  '["\\x"]': [2, /a known escape/],
  "1 2": [2, /nothing after the value/],
  "": [0, /the text ends, expected a value/],
};
for (const [text, [index, message]] of Object.entries(ERRORS)) {
  test(`an error in ${JSON.stringify(text)}`, () => {
    const error = jsonError(text);
    assert.equal(error.index, index);
    assert.match(error.message, message);
  });
}
test("no error", () => assert.equal(jsonError(' {"a": [1.5e3, "\\u00e9", null]} '), null));
test("too deep", () => assert.notEqual(jsonError("[".repeat(1e6)), null));
test("a sample of sound is a WAV file", async () => {
  const file = Buffer.from(await wavOf(new Int16Array([1, -1])).arrayBuffer());
  assert.equal(file.toString("latin1", 0, 4) + file.toString("latin1", 8, 16) + file.toString("latin1", 36, 40), "RIFFWAVEfmt data");
  const read = [file.readUInt32LE(4), file.readUInt16LE(20), file.readUInt16LE(22), file.readUInt32LE(24), file.readUInt32LE(28)];
  assert.deepEqual(read, [file.length - 8, 1, 1, 16000, 32000]);
  assert.deepEqual([file.readUInt16LE(32), file.readUInt16LE(34), file.readUInt32LE(40), file.readInt16LE(46)], [2, 16, 4, -1]);
});

test("examples are of the kind of the input", () => {
  const port = (kind, more) => ({ name: "x", kind, ...more });
  assert.equal(exampleOf(port("tensor", { dtype: "FP32", shape: [-1, 2, 3] })), "[[[0.5, 0.5, 0.5],\n[0.5, 0.5, 0.5]]]");
  assert.equal(exampleOf(port("tensor", { dtype: "int64", shape: [2] })), "[1, 1]");
  assert.equal(exampleOf(port("tensor", { dtype: "string", shape: [] })), '"a"');
  assert.equal(exampleOf(port("tensor", { shape: [1000, 1000, 1000] })), "");
  assert.equal(exampleOf(port("json", { example: { a: 1 } })), '{\n  "a": 1\n}');
  assert.equal(exampleOf(port("list", { items: port("integer") })), "[1]");
  for (const kind of ["text", "integer", "number", "boolean", "json", "list", "tensor"]) {
    assert.equal(faultOf(port(kind), { given: true, text: exampleOf(port(kind)), files: [] }), "", kind);
  }
});

test("what is missing or of another kind", () => {
  const fault = (kind, text) => faultOf({ name: "x", kind }, { given: true, text, files: [] });
  assert.match(fault("image", ""), /picture/);
  assert.match(fault("integer", "1.5"), /whole number/);
  assert.match(fault("number", '"1"'), /number/);
  assert.match(fault("list", "{}"), /list/);
  assert.match(fault("tensor", "[1,"), /Line 1, column 4/);
  assert.equal(faultOf({ name: "x", kind: "image" }, { given: false, text: "", files: [] }), "");
});

test("times per node", () => {
  const header = 'queue.a;dur=1.5, run.a;dur=2;desc="batch 4", queue.b.c;dur=0.01, run.b.c;dur=3;desc="batch 1"';
  assert.deepEqual(timingOf(header), [{ node: "a", queue: 1.5, run: 2, batch: 4 }, { node: "b.c", queue: 0.01, run: 3, batch: 1 }]);
  assert.deepEqual(timingOf(null), []);
});

const PLAN = { path: "predict/x", headers: {}, events: true, body: { text: "x" } };
const PARTS = 'event: part\ndata: {"part": 1}\n\nevent: part\ndata: {"part": 2}\n\n';
const PROBLEM = { status: 500, title: "Internal Server Error", code: "backend_error", detail: "no" };

/** Ask for events that come as `text`, and then end, or break if there is an `error`. */
function asked(text, error) {
  let pulls = 0;
  const body = new ReadableStream({
    pull(controller) {
      if (!pulls++) controller.enqueue(new TextEncoder().encode(text));
      else if (error) controller.error(error);
      else controller.close();
    },
  });
  const headers = { "Content-Type": "text/event-stream" };
  const api = { fetch: async () => new Response(body, { headers }) };
  return ask(api, PLAN, new AbortController().signal, () => {});
}

test("parts that came are kept, however the stream ends", async () => {
  const kept = [{ part: 1 }, { part: 2 }];
  const whole = await asked(`${PARTS}event: end\ndata: {}\n\n`);
  assert.deepEqual([whole.status, whole.value, whole.problem, whole.running], [200, kept, null, false]);
  const failed = await asked(`${PARTS}event: error\ndata: ${JSON.stringify(PROBLEM)}\n\n`);
  assert.deepEqual([failed.value, failed.problem], [kept, PROBLEM]);
  for (const broken of [await asked(PARTS), await asked(PARTS, new TypeError("network error"))]) {
    assert.deepEqual([broken.status, broken.value, broken.problem.code], [200, kept, "broken"]);
  }
});

test("a page without events has the rates since it asked before", () => {
  const status = (uptime_s, succeeded, queue_full) => {
    const one = { name: "x", version: "1", mood: "idle", succeeded, failed: { soft: 0 }, refused: { queue_full } };
    return { uptime_s, pipelines: [{ ...one, succeeded_per_s: null, failed_per_s: null, refused_per_s: null }] };
  };
  const seen = (now, before) => withRates(now, before).pipelines.map((one) => [one.mood, one.succeeded_per_s, one.refused_per_s])[0];
  assert.deepEqual(seen(status(10, 5, 0), null), ["idle", null, null]);
  assert.deepEqual(seen(status(18, 45, 0), status(10, 5, 0)), ["calm", 5, 0]);
  assert.deepEqual(seen(status(18, 5, 8), status(10, 5, 0)), ["refusing", 0, 1]);
  assert.deepEqual(seen(status(2, 1, 0), status(10, 5, 0)), ["idle", null, null], "the server was restarted");
});
