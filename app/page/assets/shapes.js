// @ts-check
/** Finds in an answer what can be drawn. Pure. A `path` is a JSON pointer into the answer. */

const MOST_SHAPES = 500;
const MOST_VISITED = 5_000;
const MOST_MASKS = 32;
const LEAST_MASK = 16; // rows and columns, where no key says that it is one

const PLACE = /(^|_)(b?box|bounding_?box|rect|poly|polygon|quad|point|corner|contour|segmentation|keypoint|landmark|kpt)(e?s)?($|_)|xyxy|xywh|ltwh/;
const POINTS = /(keypoint|landmark|kpt)s?$/;
const OTHER = /score|conf|prob|label|class|count|num|area/;
const MASK = /mask|segment|heat_?map|alpha|depth/;
const LABEL = /^(label|class_?name|text|name|category|class(es|_?ids?)?)s?$/;
const SCORE = /^(det_)?(score|confidence|conf|probability|probabilitie|prob)s?$/;
const SIDES = ["x1 y1 x2 y2", "left top right bottom", "x y w h", "x y width height", "left top width height"].map((names) => names.split(" "));

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
 * Return what an answer holds. A shape, in pixels, is a polygon if it is `closed`, else points. A
 * mask has `classes`, 0 is the ground, or other numbers, and fills its `box` or the picture.
 * @param {any} answer
 * @param {{width: number, height: number} | null} size of the picture that was sent, upright
 */
export function find(answer, size) {
  const found = { shapes: [], isCut: false, masks: [], rankings: [], pictures: [] };
  let visited = 0;

  // `about`: what is said of a place beside it; `row`: the path of all that.
  const walk = (value, name, path, row, about) => {
    visited += 1;
    if (visited > MOST_VISITED) return;
    const place = isPlace(name) && !isGrid(flat(value), LEAST_MASK) && placeOf(value, name);
    if (place) {
      found.shapes.push({ path: row, label: about.label, score: about.score, ...place });
      if (place.closed) about.box ??= place.points;
    } else if (isObject(value)) object(value, path);
    else if (Array.isArray(value)) list(value, name, path, about);
    else if (/^(iVBORw0KGgo|\/9j\/).{50}/.test(value)) found.pictures.push(`data:image/${value[0] === "i" ? "png" : "jpeg"};base64,${value}`);
  };

  const object = (value, path) => {
    const about = aboutOf(value);
    const before = found.shapes.length + found.rankings.length;
    if (about.box) found.shapes.push({ path, label: about.label, score: about.score, points: about.box, closed: true });
    const members = Object.keys(value).map((key) => [key, snake(key)]);
    members.sort(([, a], [, b]) => Number(MASK.test(a)) - Number(MASK.test(b))); // a mask may be of the box
    for (const [key, name] of members) walk(value[key], name, below(path, key), path, about);
    if (found.shapes.length + found.rankings.length > before) return;
    const { label, score, labels, scores } = about;
    const names = labels.find((one) => one.length > 1);
    const numbers = scores.find((one) => one.length === names?.length);
    if (numbers) found.rankings.push(names.map((one, index) => ({ label: one, score: numbers[index] })).sort((a, b) => b.score - a.score));
    else if (label && score !== null) found.rankings.push([{ label, score }]);
  };

  const list = (value, name, path, about) => {
    const inner = flat(value);
    const isNamed = MASK.test(name);
    const several = isGrid(inner, isNamed ? 2 : LEAST_MASK) ? [inner] : inner;
    const ranking = value.length && !isPlace(name) && value.slice(0, 100).map((one) => (isObject(one) ? barOf(one) : null));
    if (size && isGrid(flat(several[0]), isNamed ? 2 : LEAST_MASK)) masks(several, path, isNamed ? about : aboutOf({}));
    else if (isRow(inner) && !isPlace(name)) return; // a vector: the answer shows its length
    else if (ranking && ranking.every(Boolean)) found.rankings.push(ranking);
    else value.every((one, index) => {
      const fits = (column) => column.length === value.length;
      const own = { ...about, box: null, label: about.labels.find(fits)?.[index] ?? "", score: about.scores.find(fits)?.[index] ?? null };
      walk(one, name, below(path, index), below(path, index), own);
      return visited <= MOST_VISITED;
    });
  };

  const masks = (several, path, { label, box }) => {
    for (const [index, one] of several.slice(0, MOST_MASKS).entries()) {
      const rows = flat(one);
      if (!isGrid(rows, 2)) continue;
      const isWhole = Math.abs((rows[0].length / rows.length) * (size.height / size.width) - 1) < 0.02;
      const own = several.length > 1 ? { path: below(path, index), label: label || `mask ${index}` } : { path, label };
      found.masks.push({ ...own, rows, box: isWhole ? null : box, classes: rows.every((row) => row.every(Number.isInteger)) });
    }
  };

  walk(answer, "", "", "", aboutOf({}));
  found.isCut = found.shapes.length > MOST_SHAPES;
  found.shapes = found.shapes.slice(0, MOST_SHAPES);
  // Coordinates none of which is above 1 are parts of the picture's size.
  if (size && found.shapes.every(({ points }) => points.flat().every((one) => one > -0.5 && one <= 1.01))) {
    for (const shape of found.shapes) shape.points = shape.points.map(([x, y]) => [x * size.width, y * size.height]);
  }
  return found;
}

/** What an object says of a place: `label`, `score`, `box`; of a list of places: `labels`, `scores`. */
function aboutOf(value) {
  const isClass = (key) => (/class(es|_?ids?)?$/i.test(key) ? 1 : 0); // a text is better than a number
  const wordOf = (key, one) => (isNumber(one) && isClass(key) ? `class ${one}` : String(one));
  const pick = (pattern) => Object.keys(value).filter((key) => pattern.test(snake(key))).map((key) => [key, flat(value[key])]);
  const words = pick(LABEL).sort(([a], [b]) => isClass(a) - isClass(b));
  const numbers = pick(SCORE).map(([, one]) => one);
  const word = words.find(([, one]) => isWord(one));
  return {
    label: word ? wordOf(word[0], word[1]) : "",
    score: numbers.find(isNumber) ?? null,
    labels: words.filter(([, one]) => Array.isArray(one) && one.every(isWord)).map(([key, all]) => all.map((one) => wordOf(key, one))),
    scores: numbers.filter(isRow),
    box: boxOf(value),
  };
}

/** Return the bar of an object that is a class and no place; else null. */
function barOf(value) {
  const { label, score, box } = aboutOf(value);
  const isBar = label && score !== null && !box && !Object.keys(value).some((key) => isPlace(snake(key)) || MASK.test(key));
  return isBar ? { label, score } : null;
}

/** Return the one place that a value is; null: it is none, or several. */
function placeOf(value, name) {
  const closed = !POINTS.test(name);
  if (isObject(value)) return boxOf(value) && { closed, points: boxOf(value) };
  if (!Array.isArray(value) || value.length < 2) return null;
  if (isRow(value)) {
    const [a, b, c, d] = value;
    if (closed && value.length === 4) return { closed, points: /wh|rect/.test(name) ? corners(a, b, a + c, b + d) : corners(a, b, c, d) };
    if (value.length < 6 || value.length % 2) return null;
    return { closed, points: Array.from({ length: value.length / 2 }, (_, index) => value.slice(2 * index, 2 * index + 2)) };
  }
  // A third number of a keypoint says whether it is seen.
  const points = value.map((one) => (isRow(one) && (one.length === 2 || (!closed && one.length === 3)) ? one.slice(0, 2) : isNumber(one?.x) && isNumber(one.y) && [one.x, one.y]));
  if (!points.every(Boolean)) return null;
  return { closed, points: closed && points.length === 2 ? corners(...points[0], ...points[1]) : points };
}

const corners = (...sides) => [[0, 1], [2, 1], [2, 3], [0, 3]].map(([x, y]) => [sides[x], sides[y]]);

/** Return the corners of an object such as {x, y, width, height}, or null. */
function boxOf(value) {
  const members = Object.fromEntries(Object.entries(value).map(([key, one]) => [key.toLowerCase(), one]));
  const sides = SIDES.find((names) => names.every((name) => isNumber(members[name])));
  if (!sides) return null;
  const [a, b, c, d] = sides.map((name) => members[name]);
  return sides[2][0] === "w" ? corners(a, b, a + c, b + d) : corners(a, b, c, d);
}
