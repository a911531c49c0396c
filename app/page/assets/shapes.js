// @ts-check
/** Recognises in an answer what can be drawn. Pure. A `path` is a JSON pointer into the answer. */

/**
 * @typedef {{path: string, points: number[][], closed: boolean, label: string, score: number | null}}
 *   Shape In pixels. `closed`: a polygon; else points.
 * @typedef {{path: string, rows: number[][], label: string, classes: boolean, box: number[][] | null}}
 *   Mask `classes`: whole numbers, 0 is the ground. `box`: what it fills; null: the image.
 * @typedef {{shapes: Shape[], isCut: boolean, masks: Mask[],
 *   rankings: {label: string, score: number}[][], vectors: {path: string, values: number[]}[],
 *   pictures: string[]}} Found `isCut`: there were more shapes. `pictures`: URLs.
 */

const MOST_SHAPES = 500;
const MOST_VISITED = 5_000;
const MOST_MASKS = 32;
const LEAST_VECTOR = 16;
const LEAST_MASK = 16; // rows and columns, where no key says that it is one

const PLACE = /(^|_)(b?box|bounding_?box|rect|poly|polygon|quad|point|corner|contour|segmentation|keypoint|landmark|kpt)(e?s)?($|_)|xyxy|xywh|ltwh/;
const POINTS = /(keypoint|landmark|kpt)s?$/;
const OTHER = /score|conf|prob|label|class|count|num|area/;
const MASK = /mask|segment|heat_?map|alpha|depth/;
const LABEL = /^(label|class_?name|text|name|category|class(es|_?ids?)?)s?$/;
const SCORE = /^(det_)?(score|confidence|conf|probability|probabilitie|prob)s?$/;
const SIDES = [["x1", "y1", "x2", "y2"], ["left", "top", "right", "bottom"], ["x", "y", "w", "h"], ["x", "y", "width", "height"], ["left", "top", "width", "height"]];

const isNumber = (value) => typeof value === "number";
const isWord = (value) => isNumber(value) || typeof value === "string";
const isRow = (value) => Array.isArray(value) && value.length > 0 && value.every(isNumber);
const isGrid = (value, least) =>
  Array.isArray(value) && value.length >= least && value.every((row) => row?.length === value[0].length && row.length >= least && isNumber(row[0]));
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isPlace = (name) => PLACE.test(name) && !OTHER.test(name);
const snake = (key) => key.replace(/([a-z])([A-Z])/g, "$1_$2").toLowerCase();

/** Take away sizes of 1, as of a batch of one. */
const flat = (value) => (Array.isArray(value) && value.length === 1 && Array.isArray(value[0]) ? flat(value[0]) : value);

/** @param {string} path @param {string | number} key */
export const below = (path, key) => `${path}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;

/**
 * Return what an answer holds.
 * @param {any} answer
 * @param {{width: number, height: number} | null} size of the picture that was sent, upright
 * @returns {Found}
 */
export function find(answer, size) {
  /** @type {Found} */
  const found = { shapes: [], isCut: false, masks: [], rankings: [], vectors: [], pictures: [] };
  let visited = 0;

  const walk = (value, path) => {
    visited += 1;
    if (visited > MOST_VISITED) return;
    if (Array.isArray(value)) list(value, path);
    else if (isObject(value)) record(value, path);
    else if (/^(iVBORw0KGgo|\/9j\/).{50}/.test(value)) found.pictures.push(`data:image/${value[0] === "i" ? "png" : "jpeg"};base64,${value}`);
  };

  const list = (value, path) => {
    const inner = flat(value);
    const ranking = rankingOf(value);
    if (ranking) found.rankings.push(ranking);
    else if (isRow(inner)) {
      if (inner.length >= LEAST_VECTOR) found.vectors.push({ path, values: inner });
    } else if (!masks(value, path, "", LEAST_MASK, null)) value.every((item, index) => (walk(item, below(path, index)), visited <= MOST_VISITED));
  };

  const record = (value, path) => {
    const members = Object.entries(value).map(([key, one]) => ({ key, name: snake(key), one, at: below(path, key) }));
    const { label, score, labels, scores } = aboutOf(value);
    const shapes = found.shapes.length;
    const rankings = found.rankings.length;
    let box = boxOfSides(value);
    if (box) found.shapes.push({ path, label, score, points: box, closed: true });
    const others = members.filter(({ name, one, at }) => {
      if (!isPlace(name) || isGrid(flat(one), LEAST_MASK)) return true;
      const before = found.shapes.length;
      const place = placeOf(one, name);
      if (place) found.shapes.push({ path, label, score, ...place });
      else if (Array.isArray(one)) places(one, name, at, labels, scores);
      if (place?.closed) box ??= place.points;
      return found.shapes.length === before;
    });
    for (const { name, one, at } of others) if (!MASK.test(name) || !masks(one, at, label, 2, box)) walk(one, at);
    if (found.shapes.length > shapes || found.rankings.length > rankings) return;
    const names = labels.find((one) => one.length > 1);
    const numbers = scores.find((one) => one.length === names?.length);
    if (numbers) found.rankings.push(names.map((one, index) => ({ label: one, score: numbers[index] })).sort((a, b) => b.score - a.score));
    else if (label && score !== null) found.rankings.push([{ label, score }]);
  };

  /** Add each place of a list, with the label and the score of its index. */
  const places = (value, name, path, labels, scores) => {
    const fits = (column) => column.length === value.length;
    if (value.length === 1 && Array.isArray(value[0]) && !placeOf(value[0], name)) places(value[0], name, below(path, 0), labels, scores);
    else value.forEach((one, index) => {
      const about = { path: below(path, index), label: labels.find(fits)?.[index] ?? "", score: scores.find(fits)?.[index] ?? null };
      const place = placeOf(one, name);
      if (place) found.shapes.push({ ...about, ...place });
      else walk(one, about.path);
    });
  };

  /** Take a mask or a list of them. Return whether it was one. */
  const masks = (value, path, label, least, box) => {
    const inner = flat(value);
    const several = isGrid(inner, least) ? [inner] : inner;
    if (!size || !Array.isArray(several) || !isGrid(flat(several[0]), least)) return false;
    for (const [index, one] of several.slice(0, MOST_MASKS).entries()) {
      const rows = flat(one);
      if (!isGrid(rows, 2)) continue;
      const isWhole = Math.abs((rows[0].length / rows.length) * (size.height / size.width) - 1) < 0.02;
      const own = several.length > 1 ? { path: below(path, index), label: label || `mask ${index}` } : { path, label };
      found.masks.push({ ...own, rows, box: isWhole ? null : box, classes: rows.every((row) => row.every(Number.isInteger)) });
    }
    return true;
  };

  walk(answer, "");
  found.isCut = found.shapes.length > MOST_SHAPES;
  found.shapes = found.shapes.slice(0, MOST_SHAPES);
  // Coordinates none of which is above 1 are parts of the picture's size.
  if (size && found.shapes.every(({ points }) => points.flat().every((one) => one > -0.5 && one <= 1.01))) {
    for (const shape of found.shapes) shape.points = shape.points.map(([x, y]) => [x * size.width, y * size.height]);
  }
  return found;
}

/** What an object says of a place: `label` and `score`; of a list of places: `labels` and `scores`. */
function aboutOf(value) {
  const isClass = (key) => (/class(es|_?ids?)?$/i.test(key) ? 1 : 0); // a text is better than a number
  const wordOf = (key, one) => (isNumber(one) && isClass(key) ? `class ${one}` : String(one));
  const pick = (pattern) => Object.entries(value).filter(([key]) => pattern.test(snake(key))).map(([key, one]) => [key, flat(one)]);
  const words = pick(LABEL).sort(([a], [b]) => isClass(a) - isClass(b));
  const numbers = pick(SCORE).map(([, one]) => one);
  const word = words.find(([, one]) => isWord(one));
  return {
    label: word ? wordOf(word[0], word[1]) : "",
    score: numbers.find(isNumber) ?? null,
    labels: words.filter(([, one]) => Array.isArray(one) && one.every(isWord)).map(([key, all]) => all.map((one) => wordOf(key, one))),
    scores: numbers.filter(isRow),
  };
}

/** Return the bars of a list of classes; null: it is none, or its items have places. */
function rankingOf(value) {
  const rows = value.slice(0, 100).map((one) => (isObject(one) && !boxOfSides(one) && !Object.keys(one).some((key) => isPlace(snake(key)) || MASK.test(key)) ? aboutOf(one) : null));
  return rows.length && rows.every((one) => one?.label && one.score !== null) ? rows : null;
}

/** Return the one place that a value is; null: it is none, or several. */
function placeOf(value, name) {
  const closed = !POINTS.test(name);
  if (closed && isRow(value) && value.length === 4) {
    const [a, b, c, d] = value;
    return { closed, points: /wh|rect/.test(name) ? corners(a, b, a + c, b + d) : corners(a, b, c, d) };
  }
  if (isObject(value)) return boxOfSides(value) && { closed, points: boxOfSides(value) };
  if (!Array.isArray(value) || value.length < 2) return null;
  const isLong = isRow(value) && value.length > 5 && value.length % 2 === 0; // x, y, x, y, …
  const points = isLong
    ? Array.from({ length: value.length / 2 }, (_, index) => value.slice(2 * index, 2 * index + 2))
    : // A third number of a keypoint says whether it is seen.
      value.map((one) => (isRow(one) && (one.length === 2 || (!closed && one.length === 3)) ? one.slice(0, 2) : isNumber(one?.x) && isNumber(one.y) && [one.x, one.y]));
  if (!points.every(Boolean)) return null;
  return { closed, points: closed && points.length === 2 ? corners(points[0][0], points[0][1], points[1][0], points[1][1]) : points };
}

const corners = (x1, y1, x2, y2) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];

/** Return the corners of an object such as {x, y, width, height}, or null. */
function boxOfSides(value) {
  const members = Object.fromEntries(Object.entries(value).map(([key, one]) => [key.toLowerCase(), one]));
  const sides = SIDES.find((names) => names.every((name) => isNumber(members[name])));
  if (!sides) return null;
  const [a, b, c, d] = sides.map((name) => members[name]);
  return sides[2][0] === "w" ? corners(a, b, a + c, b + d) : corners(a, b, c, d);
}
