// Patches that are padding alone, which no map marks, as in explanation/padding.py.

import { info, patchCount } from "./info.js";

const contentOf = new WeakMap(); // of the pixels of an image

// Which patches hold any of the photo: an array of true and false.
export function contentPatches(pixels) {
  if (!contentOf.has(pixels)) contentOf.set(pixels, findContent(pixels));
  return contentOf.get(pixels);
}

export const countContent = (pixels) => contentPatches(pixels).filter(Boolean).length;

// The map with zeros where there is padding.
export const blankPadding = (map, pixels) => map.map((value, patch) => (contentPatches(pixels)[patch] ? value : 0));

function findContent(pixels) {
  const { preprocess } = info;
  const [h, w] = info.grid;
  if (preprocess.fit !== "pad") return new Array(patchCount).fill(true);
  const [rows, columns] = pixels.photo ? barsAround(pixels) : findBars(pixels);
  const isRowOutside = outsideBars(rows, pixels.height, h);
  const isColumnOutside = outsideBars(columns, pixels.width, w);
  return along(patchCount, (patch) => isRowOutside[Math.floor(patch / w)] && isColumnOutside[patch % w]);
}

const along = (length, test) => Array.from({ length }, (_, i) => test(i));

function barsAround({ width, height, photo }) {
  const after = (size, start, length) => Math.max(0, size - start - length);
  return [
    [photo.top, after(height, photo.top, photo.height)],
    [photo.left, after(width, photo.left, photo.width)],
  ];
}

// The bars of the padding color, if nothing says where the photo is.
function findBars({ width, height, planes }) {
  const colors = info.paddingColor;
  const isPadding = (y, x) => colors.every((color, c) => planes[(c * height + y) * width + x] === color);
  const rows = countBars(along(height, (y) => along(width, (x) => isPadding(y, x)).every(Boolean)));
  const columns = countBars(along(width, (x) => along(height, (y) => isPadding(y, x)).every(Boolean)));
  const none = [0, 0];
  return [columns[0] > 0 ? none : rows, rows[0] > 0 ? none : columns];
}

// How many lines of the padding color are before and after the photo: as many, or one more after it.
function countBars(isBar) {
  const count = (lines) => (lines.includes(false) ? lines.indexOf(false) : lines.length);
  const [before, after] = [count(isBar), count(isBar.slice().reverse())];
  const smaller = Math.min(before, after);
  return [smaller, Math.min(after, smaller + 1)];
}

function outsideBars([before, after], size, patches) {
  return Array.from({ length: patches }, (_, patch) => {
    const [start, end] = [Math.floor((patch * size) / patches), Math.floor(((patch + 1) * size) / patches)];
    return end > before && start < size - after;
  });
}
