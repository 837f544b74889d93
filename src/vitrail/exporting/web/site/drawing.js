// Draws the image with its map on a canvas: the patches as panes of a window, and above them an arch in the color of
// the explained class, filled up to its probability. Also draws small maps without an image.

import { cividis, colorLimits, mix, parseHex, patchOverlay, pixelUnder, toCss } from "./colors.js";
import { toImageData } from "./image-files.js";

const FRAME_COLOR = "#0d0b13";
const LINE_COLOR = "#14111c";
const LINE_HIGHLIGHT = "rgb(255 255 255 / .10)";
const HIDDEN_COLOR = [41, 37, 55];
const SELECTION_COLOR = "#7df0ff";

// The positions of everything on a canvas of this width.
export function layoutFrame(width, [h, w]) {
  const margin = Math.max(8, width * 0.028);
  const span = width - 2 * margin;
  const archHeight = span * 0.4;
  const top = margin + archHeight + span * 0.02;
  const cell = span / w;
  return { width, margin, span, archHeight, top, cell, height: top + cell * h + margin, rows: h, columns: w };
}

// The patch at a point of the canvas, or null.
export function patchAt({ margin, top, cell, rows, columns }, x, y) {
  const [column, row] = [Math.floor((x - margin) / cell), Math.floor((y - top) / cell)];
  return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : null;
}

// `content`: pixels (of the model's size), map and isSigned (or no map), color and probability of the class, hidden (a
// set of patches), patch and isPinned, opacity (1: the map over the image, 0: the image alone).
export function drawFrame(context, frame, content) {
  const lineWidth = Math.max(1.2, Math.min(frame.cell * 0.055, 3.2));
  context.save();
  context.clearRect(0, 0, frame.width, frame.height);
  drawBackground(context, frame);
  drawArch(context, frame, content, lineWidth);
  drawImage(context, frame, content);
  drawPatches(context, frame, content.hidden);
  drawLines(context, frame, lineWidth);
  if (content.patch !== null) {
    outlinePatch(context, frame, content.patch, "#0b0a10", 5);
    outlinePatch(context, frame, content.patch, SELECTION_COLOR, content.isPinned ? 3.4 : 2.2);
  }
  context.restore();
}

// A small map without an image.
export function drawTile(canvas, map, [h, w], isSigned, patch) {
  const cell = Math.max(4, Math.round(96 / w));
  canvas.width = w * cell;
  canvas.height = h * cell;
  const context = canvas.getContext("2d");
  const limits = colorLimits(map, isSigned);
  map.forEach((value, i) => {
    const { color, strength } = patchOverlay(value, limits, isSigned);
    context.fillStyle = toCss(isSigned ? mix([233, 230, 240], color, strength) : cividis(strength));
    context.fillRect((i % w) * cell, Math.floor(i / w) * cell, cell - 0.6, cell - 0.6);
  });
  if (patch !== null) {
    context.strokeStyle = SELECTION_COLOR;
    context.lineWidth = 2;
    context.strokeRect((patch % w) * cell + 1, Math.floor(patch / w) * cell + 1, cell - 2, cell - 2);
  }
}

function drawBackground(context, { width, height, margin, archHeight, top }) {
  context.fillStyle = FRAME_COLOR;
  context.beginPath();
  traceArch(context, 0.5, top, width - 1, archHeight + margin);
  context.lineTo(width - 0.5, height - 0.5);
  context.lineTo(0.5, height - 0.5);
  context.closePath();
  context.fill();
  context.strokeStyle = "rgb(255 255 255 / .13)";
  context.lineWidth = 1;
  context.stroke();
}

// A pointed arch over the line from (left, base) to (left + span, base).
function traceArch(context, left, base, span, height) {
  const apex = left + span / 2;
  context.moveTo(left, base);
  context.bezierCurveTo(left, base - height * 0.6, left + span * 0.22, base - height * 0.83, apex, base - height);
  context.bezierCurveTo(left + span * 0.78, base - height * 0.83, left + span, base - height * 0.6, left + span, base);
}

function mulberry32(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// The panes of the arch, as polygons in a unit square: a grid with moved corners, in which some cells are cut in two.
function makeArchPanes(columns, rows) {
  const random = mulberry32(11);
  const corners = Array.from({ length: rows + 1 }, (_, y) =>
    Array.from({ length: columns + 1 }, (_, x) => [
      (x + (x > 0 && x < columns ? 0.55 * (random() - 0.5) : 0)) / columns,
      (y + (y > 0 && y < rows ? 0.55 * (random() - 0.5) : 0)) / rows,
    ]),
  );
  const panes = [];
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const [a, b, c, d] = [corners[y][x], corners[y][x + 1], corners[y + 1][x + 1], corners[y + 1][x]];
      const polygons =
        random() < 0.5
          ? [[a, b, c, d]]
          : [
              [a, b, c],
              [a, c, d],
            ];
      for (const points of polygons) panes.push({ points, tone: Math.floor(random() * 4) });
    }
  }
  return panes;
}

const ARCH_PANES = makeArchPanes(9, 4);

function drawArch(context, { margin, span, archHeight, top }, { color, probability }, lineWidth) {
  const base = top - span * 0.012;
  const toCanvas = ([x, y]) => [margin + x * span, base - archHeight + y * archHeight];
  const drawPanes = (fillOf) => {
    context.lineWidth = lineWidth;
    context.strokeStyle = LINE_COLOR;
    context.lineJoin = "round";
    for (const { points, tone } of ARCH_PANES) {
      context.beginPath();
      points.map(toCanvas).forEach(([x, y]) => context.lineTo(x, y));
      context.closePath();
      context.fillStyle = fillOf(tone);
      context.fill();
      context.stroke();
    }
  };
  context.save();
  context.beginPath();
  traceArch(context, margin, base, span, archHeight);
  context.closePath();
  context.clip();
  drawPanes((tone) => toCss(mix(HIDDEN_COLOR, [24, 21, 33], tone / 4)));
  context.beginPath();
  context.rect(margin, base - archHeight * probability, span, archHeight * probability);
  context.clip();
  const rgb = parseHex(color);
  const white = [255, 255, 255];
  const tones = [mix(rgb, [0, 0, 0], 0.3), rgb, mix(rgb, white, 0.2), mix(rgb, white, 0.42)];
  drawPanes((tone) => toCss(tones[tone]));
  const center = margin + span / 2;
  const glow = context.createRadialGradient(center, base, 0, center, base, span * 0.6);
  glow.addColorStop(0, "rgb(255 255 255 / .22)");
  glow.addColorStop(1, "rgb(255 255 255 / 0)");
  context.fillStyle = glow;
  context.fillRect(margin, base - archHeight, span, archHeight);
  context.restore();
}

let scratch = null; // a canvas of the model's size, which the browser enlarges

function drawImage(context, { margin, span, top, cell, rows, columns }, { pixels, map, isSigned, opacity }) {
  const { width, height } = pixels;
  const image = toImageData(pixels);
  if (map) blendMap(image, map, isSigned, opacity, rows, columns);
  scratch = scratch || document.createElement("canvas");
  scratch.width = width;
  scratch.height = height;
  scratch.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(scratch, margin, top, span, cell * rows);
}

// Blends each pixel with the color of its patch, as paint_map of explanation/render.py does.
function blendMap(image, map, isSigned, mapOpacity, rows, columns) {
  const { width, height, data } = image;
  const limits = colorLimits(map, isSigned);
  const overlays = Array.from(map, (value) => patchOverlay(value, limits, isSigned));
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor((y * rows) / height) * columns;
    for (let x = 0; x < width; x++, i += 4) {
      const { strength, opacity, color, saturation } = overlays[row + Math.floor((x * columns) / width)];
      const gray = (data[i] + data[i + 1] + data[i + 2]) / 3;
      for (let c = 0; c < 3; c++) {
        const pale = gray + saturation * (data[i + c] - gray);
        const painted = (1 - opacity) * pixelUnder(pale, strength) + opacity * color[c];
        data[i + c] = mapOpacity * painted + (1 - mapOpacity) * data[i + c];
      }
    }
  }
}

// Gives each patch a sheen, or the color of a hidden patch.
function drawPatches(context, { margin, top, cell, rows, columns }, hidden) {
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const [left, above] = [margin + x * cell, top + y * cell];
      if (hidden?.has(y * columns + x)) {
        context.fillStyle = toCss(mix(HIDDEN_COLOR, [20, 17, 28], ((x * 7 + y * 3) % 5) / 8));
      } else {
        const sheen = context.createLinearGradient(left, above, left + cell, above + cell);
        sheen.addColorStop(0, "rgb(255 255 255 / .13)");
        sheen.addColorStop(0.45, "rgb(255 255 255 / 0)");
        sheen.addColorStop(1, "rgb(0 0 0 / .16)");
        context.fillStyle = sheen;
      }
      context.fillRect(left, above, cell, cell);
    }
  }
}

// Draws the lines between patches; large patches get a highlight on the lines and dots where they meet.
function drawLines(context, frame, lineWidth) {
  const { margin, top, cell, rows, columns } = frame;
  strokeGrid(context, frame, LINE_COLOR, lineWidth);
  if (cell <= 18) return;
  strokeGrid(context, frame, LINE_HIGHLIGHT, Math.max(0.5, lineWidth * 0.28));
  context.fillStyle = LINE_COLOR;
  for (let y = 0; y <= rows; y++) {
    for (let x = 0; x <= columns; x++) {
      context.beginPath();
      context.arc(margin + x * cell, top + y * cell, lineWidth * 0.95, 0, 7);
      context.fill();
    }
  }
}

function strokeGrid(context, { margin, span, top, cell, rows, columns }, color, lineWidth) {
  context.strokeStyle = color;
  context.lineWidth = lineWidth;
  context.beginPath();
  for (let x = 0; x <= columns; x++) {
    context.moveTo(margin + x * cell, top);
    context.lineTo(margin + x * cell, top + rows * cell);
  }
  for (let y = 0; y <= rows; y++) {
    context.moveTo(margin, top + y * cell);
    context.lineTo(margin + span, top + y * cell);
  }
  context.stroke();
}

function outlinePatch(context, { margin, top, cell, columns }, patch, color, lineWidth) {
  context.strokeStyle = color;
  context.lineWidth = lineWidth;
  context.strokeRect(margin + (patch % columns) * cell, top + Math.floor(patch / columns) * cell, cell, cell);
}
