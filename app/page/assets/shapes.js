// @ts-check
/** Recognises in an answer what can be drawn: boxes, polygons, points, masks, classes, vectors. Pure. */

/**
 * A `path` is the JSON pointer of a thing's row in the answer.
 * @typedef {[number, number]} Point
 * @typedef {{path: string, kind: "polygon" | "points", points: Point[], label: string,
 *   score: number | null}} Shape In pixels.
 * @typedef {{path: string, rows: number[][], classes: boolean, label: string,
 *   place: Point[] | null}} Mask `classes`: whole numbers, 0 is the ground; else they are drawn
 *   from the least to the greatest. `place`: two corners; null: the whole image.
 * @typedef {{path: string, rows: {label: string, score: number}[]}} Ranking
 * @typedef {{path: string, values: number[]}} Vector
 * @typedef {{path: string, url: string}} Picture
 * @typedef {{shapes: Shape[], more: number, masks: Mask[], rankings: Ranking[], vectors: Vector[],
 *   pictures: Picture[]}} Found `more`: shapes that are left out.
 * @typedef {{width: number, height: number}} Size
 * @typedef {[key: string, value: any, path: string]} Member
 */

const MOST_SHAPES = 500;
const MOST_VISITED = 20_000;
const MOST_MASKS = 32;
const LEAST_VECTOR = 16;
const LEAST_MASK = 16; // rows and columns, if no key says that it is one

const BOX = /(^|_)(b?box|bndbox|bounding_?box|rect(angle)?)(e?s)?($|_)|xyxy|[xy]wh|ltwh|tlbr/;
const POLYGON = /(^|_)(polygon|poly|quad|point|corner|contour|segmentation|vertex|vertices|outline)s?$/;
const POINTS = /(^|_)(keypoint|landmark|joint|kpt)s?(_|$)/;
const OTHER = /score|conf|prob|label|class|count|num|area/;
const MASK = /mask|segment|heat_?map|saliency|matte|alpha|depth/;
const ROWS = /^(detection|prediction|object|det|pred)s?$/;
const LABEL = /^(detection_)?(label|class_?name|text|name|category|transcription|class|class_?id|class(?=es$))(e?s)?$/;
const SCORE = /^(detection_)?(score|confidence|conf|probability|probabilitie|prob)s?$/;
/** Two corners, or one and a size. */
const SIDES = [
  "x1 y1 x2 y2",
  "xmin ymin xmax ymax",
  "x_min y_min x_max y_max",
  "x0 y0 x1 y1",
  "left top right bottom",
  "x y w h",
  "x y width height",
  "left top width height",
].map((names) => names.split(" "));

/** @param {unknown} value @returns {value is number[]} */
const isRow = (value) => Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === "number");

/** @param {any} value @param {number} least @returns {value is number[][]} */
const isGrid = (value, least) =>
  Array.isArray(value) &&
  value.length >= least &&
  value.every((row) => row?.length === value[0].length && row.length >= least && typeof row[0] === "number");

/** @param {string} key */
const snake = (key) => key.replace(/([a-z])([A-Z])/g, "$1_$2").replace(/[- ]/g, "_").toLowerCase();

/** @param {string} path @param {string | number} key */
export const below = (path, key) => `${path}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;

/** @param {string} name */
const isPlace = (name) => !OTHER.test(name) && (BOX.test(name) || POLYGON.test(name) || POINTS.test(name));

/** Take away sizes of 1, as of a batch of one. @param {any} value @returns {any} */
const flat = (value) => (Array.isArray(value) && value.length === 1 && Array.isArray(value[0]) ? flat(value[0]) : value);

/**
 * Return what an answer holds.
 * @param {unknown} answer
 * @param {Size | null} size of the image that was sent, upright; null: unknown
 * @returns {Found}
 */
export function find(answer, size) {
  /** @type {Found} */
  const found = { shapes: [], more: 0, masks: [], rankings: [], vectors: [], pictures: [] };
  let visited = 0;

  /** @param {any} value @param {string} path @param {string} name */
  const walk = (value, path, name) => {
    visited += 1;
    if (visited > MOST_VISITED || value === null) return;
    if (typeof value === "string") {
      const url = pictureOf(value);
      if (url) found.pictures.push({ path, url });
    } else if (Array.isArray(value)) list(value, path, name);
    else if (typeof value === "object") record(membersOf(value, path), path);
  };

  /** @param {any[]} value @param {string} path @param {string} name */
  const list = (value, path, name) => {
    const inner = flat(value);
    if (isRow(inner)) {
      if (inner.length >= LEAST_VECTOR) found.vectors.push({ path, values: inner });
    } else if (ROWS.test(name) && isRow(inner[0]) && [5, 6].includes(inner[0].length)) {
      addPlaces(inner, "box", path, [], []);
    } else if (!masks(value, path, "", LEAST_MASK, null)) {
      const ranking = rankingOf(value);
      if (ranking) found.rankings.push({ path, rows: ranking });
      else for (const [index, item] of value.entries()) {
        if (visited > MOST_VISITED) return;
        walk(item, below(path, index), name);
      }
    }
  };

  /** @param {Member[]} members @param {string} path */
  const record = (members, path) => {
    const labels = members.filter(([key]) => LABEL.test(snake(key))).sort(([a], [b]) => rank(a) - rank(b));
    const scores = members.filter(([key]) => SCORE.test(snake(key)));
    const label = labels.find(([, value]) => isWord(value));
    const score = scores.find(([, value]) => typeof value === "number");
    const about = { label: label ? wordOf(...label) : "", score: /** @type {number | null} */ (score ? score[1] : null) };
    const labelColumns = labels.map(([key, value]) => [key, flat(value)]).filter(([, value]) => Array.isArray(value));
    const scoreColumns = scores.map(([, value]) => flat(value)).filter(isRow);
    const before = found.shapes.length;
    const rankings = found.rankings.length;
    /** @type {Point[] | null} */
    let own = boxOfObject(Object.fromEntries(members));
    if (own) found.shapes.push({ path, kind: "polygon", points: own, ...about });
    const later = [];
    for (const member of members) {
      const [key, value, at] = member;
      const name = snake(key);
      const place = isPlace(name) && !(MASK.test(name) && isGrid(flat(value), LEAST_MASK)) ? placeOf(value, name) : null;
      if (place) {
        found.shapes.push({ ...about, ...place, path });
        own ??= place.points;
      } else if (isPlace(name) && Array.isArray(value) && value.length && !isGrid(value, LEAST_MASK)) {
        const count = found.shapes.length;
        addPlaces(value, name, at, labelColumns, scoreColumns);
        if (found.shapes.length === count) later.push(member);
      } else later.push(member);
    }
    for (const [key, value, at] of later) {
      const name = snake(key);
      if (!(MASK.test(name) && Array.isArray(value) && masks(value, at, about.label, 2, own))) walk(value, at, name);
    }
    if (found.shapes.length > before) return;
    const names = labelColumns.find(([, value]) => value.length > 1 && value.every(isWord));
    const column = names && scoreColumns.find((one) => one.length === names[1].length);
    const shares = scores.find(([, value]) => isShares(value));
    if (names && column) {
      const rows = names[1].map((/** @type {any} */ one, /** @type {number} */ index) => ({ label: wordOf(names[0], one), score: column[index] }));
      found.rankings.push({ path, rows: sorted(rows) });
    } else if (shares) {
      const rows = Object.entries(shares[1]).map(([one, value]) => ({ label: one, score: Number(value) }));
      found.rankings.push({ path: shares[2], rows: sorted(rows) });
    } else if (about.label && about.score !== null && found.rankings.length === rankings) {
      found.rankings.push({ path, rows: [{ label: about.label, score: about.score }] });
    }
  };

  /**
   * Add each place of a list, with the label and score of its index.
   * @param {any[]} value @param {string} name @param {string} path @param {any[][]} labels @param {number[][]} scores
   */
  const addPlaces = (value, name, path, labels, scores) => {
    while (value.length === 1 && Array.isArray(value[0]) && !placeOf(value[0], name)) [value, path] = [value[0], below(path, 0)];
    const fits = (/** @type {any[]} */ column) => column.length === value.length;
    const column = labels.find(([, one]) => fits(one) && one.every(isWord));
    const score = scores.find(fits);
    for (const [index, one] of value.entries()) {
      const at = below(path, index);
      const about = { label: column ? wordOf(column[0], column[1][index]) : "", score: score ? score[index] : null };
      const place = placeOf(one, name);
      if (place) found.shapes.push({ ...about, ...place, path: at });
      else if (Array.isArray(one) && !isRow(one)) {
        for (const part of one) {
          const inner = placeOf(part, name);
          if (inner) found.shapes.push({ ...about, ...inner, path: at });
        }
      } else if (one && typeof one === "object") walk(one, at, name);
    }
  };

  /**
   * Take a mask or a list of masks. Return whether it was one.
   * @param {any} value @param {string} path @param {string} label @param {number} least @param {Point[] | null} box
   */
  const masks = (value, path, label, least, box) => {
    if (!size) return false;
    const inner = flat(value);
    const several = isGrid(inner, least) ? [inner] : inner;
    if (!Array.isArray(several) || !isGrid(flat(several[0]), least)) return false;
    for (const [index, one] of several.slice(0, MOST_MASKS).entries()) {
      const rows = flat(one);
      if (!isGrid(rows, 2)) continue;
      const whole = Math.abs((rows[0].length / rows.length) * (size.height / size.width) - 1) < 0.02;
      found.masks.push({
        path: several.length > 1 ? below(path, index) : path,
        rows,
        label: label || (several.length > 1 ? `mask ${index}` : ""),
        place: box && !whole ? boundsOf(box) : null,
        classes: rows.every((row) => row.every(Number.isInteger)),
      });
    }
    return true;
  };

  walk(answer, "", "");
  found.more = Math.max(0, found.shapes.length - MOST_SHAPES);
  found.shapes = inPixels(found.shapes.slice(0, MOST_SHAPES), size);
  return found;
}

/**
 * Return the members of an object. The outputs of a Triton-like answer are members by their names.
 * @param {Record<string, any>} value @param {string} path @returns {Member[]}
 */
function membersOf(value, path) {
  const { outputs, ...others } = value;
  const isTriton = Array.isArray(outputs) && outputs.every((one) => one?.name && isRow(one.shape) && Array.isArray(one.data));
  /** @type {Member[]} */
  const members = Object.entries(isTriton ? others : value).map(([key, one]) => [key, one, below(path, key)]);
  if (isTriton) {
    for (const [index, { name, shape, data }] of outputs.entries()) {
      members.push([name, shaped(data, shape), below(below(below(path, "outputs"), index), "data")]);
    }
  }
  return members;
}

/** @param {any[]} data @param {number[]} shape @returns {any[]} */
function shaped(data, shape) {
  for (const size of shape.slice(1).toReversed()) {
    if (!size) return [];
    data = Array.from({ length: data.length / size }, (_, index) => data.slice(index * size, (index + 1) * size));
  }
  return data;
}

/** Texts before numbers of classes. @param {string} key */
const rank = (key) => (/class(_?id)?(es)?$/.test(snake(key)) ? 1 : 0);

/** @param {any} value */
const isWord = (value) => typeof value === "string" || typeof value === "number";

/** @param {string} key @param {any} value */
const wordOf = (key, value) => (typeof value === "number" && rank(key) ? `class ${value}` : String(value));

/** @param {any} value */
const isShares = (value) => {
  const all = value && typeof value === "object" && !Array.isArray(value) ? Object.values(value) : [];
  return all.length > 1 && all.every((one) => typeof one === "number" && one >= 0 && one <= 1.001);
};

/** @param {{label: string, score: number}[]} rows */
const sorted = (rows) => rows.sort((a, b) => b.score - a.score);

/**
 * Return the bars of a list of classes with scores; null: it is none, or its items have places.
 * @param {any[]} value
 */
function rankingOf(value) {
  const rows = [];
  for (const one of value.slice(0, 100)) {
    if (!one || typeof one !== "object" || Array.isArray(one) || boxOfObject(one)) return null;
    const members = Object.entries(one);
    if (members.some(([key, member]) => (isPlace(snake(key)) || MASK.test(snake(key))) && member)) return null;
    const label = members.filter(([key, member]) => LABEL.test(snake(key)) && isWord(member)).sort(([a], [b]) => rank(a) - rank(b))[0];
    const score = members.find(([key, member]) => SCORE.test(snake(key)) && typeof member === "number");
    if (!label || !score) return null;
    rows.push({ label: wordOf(...label), score: /** @type {number} */ (score[1]) });
  }
  return rows.length ? rows : null;
}

/**
 * Return the one place that a value is; null: it is none, or several.
 * @param {any} value @param {string} name
 * @returns {{kind: "polygon" | "points", points: Point[], label?: string, score?: number} | null}
 */
function placeOf(value, name) {
  const kind = POINTS.test(name) ? "points" : "polygon";
  if (isRow(value)) {
    if (kind === "points") return value.length > 5 ? { kind, points: pairs(value, value.length % 3 ? 2 : 3) } : null;
    if (BOX.test(name) && [5, 6].includes(value.length)) {
      return { kind, points: boxOf(value, name), score: value[4], ...(value.length > 5 ? { label: `class ${value[5]}` } : {}) };
    }
    if (value.length === 4) return { kind, points: boxOf(value, name) };
    return value.length > 5 && value.length % 2 === 0 ? { kind, points: pairs(value, 2) } : null;
  }
  if (Array.isArray(value)) {
    const points = value.map((one) => pointOf(one, kind === "points"));
    if (value.length < 2 || !points.every((point) => point !== null)) return null;
    return { kind, points: kind === "polygon" && points.length === 2 ? corners(points[0], points[1]) : points };
  }
  const box = value && typeof value === "object" ? boxOfObject(value) : null;
  return box && { kind, points: box };
}

/** @param {any} value @param {boolean} seen whether a third number, such as that it is seen, may follow @returns {Point | null} */
function pointOf(value, seen) {
  if (isRow(value)) return value.length === 2 || (seen && value.length === 3) ? [value[0], value[1]] : null;
  return value && typeof value.x === "number" && typeof value.y === "number" && !("w" in value || "width" in value) ? [value.x, value.y] : null;
}

/** @param {number[]} row @param {number} step @returns {Point[]} */
const pairs = (row, step) => Array.from({ length: Math.floor(row.length / step) }, (_, index) => [row[index * step], row[index * step + 1]]);

/** @param {Point} from @param {Point} to @returns {Point[]} */
const corners = ([x1, y1], [x2, y2]) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];

/** Four numbers: two corners, unless the key says a corner or the middle, and the size. @param {number[]} row @param {string} name */
function boxOf([a, b, c, d], name) {
  if (/cxc?y/.test(name)) return corners([a - c / 2, b - d / 2], [a + c / 2, b + d / 2]);
  if (/xywh|ltwh|rect/.test(name)) return corners([a, b], [a + c, b + d]);
  if (/^detection_box|yxyx/.test(name)) return corners([b, a], [d, c]);
  return corners([a, b], [c, d]);
}

/** @param {Record<string, any>} value @returns {Point[] | null} */
function boxOfObject(value) {
  const members = new Map(Object.entries(value).map(([key, one]) => [snake(key), one]));
  const sides = SIDES.find((names) => names.every((name) => typeof members.get(name) === "number"));
  if (!sides) return null;
  const [a, b, c, d] = sides.map((name) => members.get(name));
  return sides[2].startsWith("w") ? corners([a, b], [a + c, b + d]) : corners([a, b], [c, d]);
}

/** @param {Point[]} points @returns {Point[]} */
function boundsOf(points) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  return [[Math.min(...xs), Math.min(...ys)], [Math.max(...xs), Math.max(...ys)]];
}

/** Coordinates none of which is above 1 are parts of the image's size. @param {Shape[]} shapes @param {Size | null} size */
function inPixels(shapes, size) {
  const isPart = shapes.every(({ points }) => points.every(([x, y]) => x > -0.5 && y > -0.5 && x <= 1.01 && y <= 1.01));
  if (!size || !isPart) return shapes;
  return shapes.map((shape) => ({ ...shape, points: shape.points.map(([x, y]) => /** @type {Point} */ ([x * size.width, y * size.height])) }));
}

/** The URL of an image that is a text of base64, or "". @param {string} text */
function pictureOf(text) {
  const types = { iVBORw0KGgo: "png", "/9j/": "jpeg", R0lGOD: "gif", UklGR: "webp" };
  const type = text.length > 60 && Object.entries(types).find(([start]) => text.startsWith(start));
  return type ? `data:image/${type[1]};base64,${text}` : "";
}
