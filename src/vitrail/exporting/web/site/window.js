// The window: the image as panes of glass, one for each patch, held by lead; over it an arch in the colour of the asked
// class, lit as far up as its probability. A patch that is hidden is a pane without light.

import { cover, css, limits, mix, rgb } from "./colours.js";

const STONE = "#0d0b13";
const LEAD = "#14111c";
const SHEEN = "rgb(255 255 255 / .10)";
const UNLIT = [41, 37, 55];

function random(seed) { // mulberry32
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// The arch's panes in a frame one wide and one high: a grid whose corners are moved, some quads cut in two.
function archPanes(across, down) {
  const draw = random(11);
  const corners = Array.from({ length: down + 1 }, (_, y) => Array.from({ length: across + 1 }, (_, x) => [
    (x + (x > 0 && x < across ? 0.55 * (draw() - 0.5) : 0)) / across,
    (y + (y > 0 && y < down ? 0.55 * (draw() - 0.5) : 0)) / down,
  ]));
  const panes = [];
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const [a, b, c, d] = [corners[y][x], corners[y][x + 1], corners[y + 1][x + 1], corners[y + 1][x]];
      for (const points of draw() < 0.5 ? [[a, b, c, d]] : [[a, b, c], [a, c, d]]) {
        panes.push({ points, tone: Math.floor(draw() * 4) });
      }
    }
  }
  return panes;
}

const PANES = archPanes(9, 4);

function trace(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
}

// A pointed arch over the line from (left, base) to (left + span, base).
function traceArch(context, left, base, span, rise) {
  context.moveTo(left, base);
  context.bezierCurveTo(left, base - rise * 0.6, left + span * 0.22, base - rise * 0.83, left + span / 2, base - rise);
  context.bezierCurveTo(left + span * 0.78, base - rise * 0.83, left + span, base - rise * 0.6, left + span, base);
}

export function layout(width, [h, w], arched = true) {
  const margin = Math.max(8, width * 0.028);
  const span = width - 2 * margin;
  const rise = arched ? span * 0.4 : 0;
  const top = margin + rise + (arched ? span * 0.02 : 0);
  const cell = span / w;
  return { width, margin, span, rise, top, cell, height: top + cell * h + margin };
}

// `scene`: image (what the model sees), map and signed (or no map), asked (a class's colour) and probability,
// hidden (a set of patches), patch (the chosen one), veil (1: the map over grey, 0: the image in its colours).
export function drawWindow(context, place, grid, scene) {
  const { width, height, margin, span, rise, top, cell } = place;
  const [h, w] = grid;
  const came = Math.max(1.2, Math.min(cell * 0.055, 3.2));
  context.save();
  context.clearRect(0, 0, width, height);

  // stone
  context.fillStyle = STONE;
  context.beginPath();
  if (rise) traceArch(context, 0.5, top, width - 1, rise + margin);
  else context.moveTo(0.5, 0.5), context.lineTo(width - 0.5, 0.5);
  context.lineTo(width - 0.5, height - 0.5);
  context.lineTo(0.5, height - 0.5);
  context.closePath();
  context.fill();
  context.strokeStyle = "rgb(255 255 255 / .13)";
  context.lineWidth = 1;
  context.stroke();

  if (rise) drawArch(context, place, scene, came);
  drawImage(context, place, grid, scene);

  // glass: each pane a little lighter where the light comes from
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const [left, above] = [margin + x * cell, top + y * cell];
      if (scene.hidden && scene.hidden.has(y * w + x)) {
        context.fillStyle = css(mix(UNLIT, [20, 17, 28], ((x * 7 + y * 3) % 5) / 8));
        context.fillRect(left, above, cell, cell);
        continue;
      }
      const light = context.createLinearGradient(left, above, left + cell, above + cell);
      light.addColorStop(0, "rgb(255 255 255 / .13)");
      light.addColorStop(0.45, "rgb(255 255 255 / 0)");
      light.addColorStop(1, "rgb(0 0 0 / .16)");
      context.fillStyle = light;
      context.fillRect(left, above, cell, cell);
    }
  }

  // lead: lines with a sheen, and solder where they meet
  const lines = () => {
    context.beginPath();
    for (let x = 0; x <= w; x++) context.moveTo(margin + x * cell, top), context.lineTo(margin + x * cell, top + h * cell);
    for (let y = 0; y <= h; y++) context.moveTo(margin, top + y * cell), context.lineTo(margin + span, top + y * cell);
  };
  context.strokeStyle = LEAD;
  context.lineWidth = came;
  lines();
  context.stroke();
  if (cell > 18) {
    context.strokeStyle = SHEEN;
    context.lineWidth = Math.max(0.5, came * 0.28);
    lines();
    context.stroke();
    context.fillStyle = LEAD;
    for (let y = 0; y <= h; y++) {
      for (let x = 0; x <= w; x++) {
        context.beginPath();
        context.arc(margin + x * cell, top + y * cell, came * 0.95, 0, 7);
        context.fill();
      }
    }
  }
  if (scene.patch !== null && scene.patch !== undefined) {
    frame(context, place, grid, scene.patch, "#0b0a10", 5);
    frame(context, place, grid, scene.patch, "#7df0ff", scene.pinned ? 3.4 : 2.2);
  }
  context.restore();
}

function frame(context, { margin, top, cell }, [, w], patch, colour, line) {
  context.strokeStyle = colour;
  context.lineWidth = line;
  context.strokeRect(margin + (patch % w) * cell, top + Math.floor(patch / w) * cell, cell, cell);
}

function drawArch(context, { margin, span, rise, top }, { asked, probability }, came) {
  const base = top - span * 0.012;
  context.save();
  context.beginPath();
  traceArch(context, margin, base, span, rise);
  context.closePath();
  context.clip();
  const colour = rgb(asked || "#77738a");
  const tones = [mix(colour, [0, 0, 0], 0.3), colour, mix(colour, [255, 255, 255], 0.2), mix(colour, [255, 255, 255], 0.42)];
  const place = ([x, y]) => [margin + x * span, base - rise + y * rise];
  const panes = (fill) => {
    context.lineWidth = came;
    context.strokeStyle = LEAD;
    context.lineJoin = "round";
    for (const { points, tone } of PANES) {
      trace(context, points.map(place));
      context.fillStyle = fill(tone);
      context.fill();
      context.stroke();
    }
  };
  panes((tone) => css(mix(UNLIT, [24, 21, 33], tone / 4)));
  context.beginPath();
  context.rect(margin, base - rise * probability, span, rise * probability);
  context.clip();
  panes((tone) => css(tones[tone]));
  const glow = context.createRadialGradient(margin + span / 2, base, 0, margin + span / 2, base, span * 0.6);
  glow.addColorStop(0, "rgb(255 255 255 / .22)");
  glow.addColorStop(1, "rgb(255 255 255 / 0)");
  context.fillStyle = glow;
  context.fillRect(margin, base - rise, span, rise);
  context.restore();
}

let scratch = null;

function drawImage(context, { margin, span, top, cell }, [h, w], { image, map, signed, veil = 1 }) {
  const { width, height, planes } = image;
  const size = width * height;
  const channels = planes.length / size;
  scratch = scratch || document.createElement("canvas");
  scratch.width = width;
  scratch.height = height;
  const pixels = new ImageData(width, height);
  const out = pixels.data;
  const ends = map ? limits(map, signed) : null;
  const covers = map ? Array.from(map, (value) => cover(value, ends, signed)) : null;
  const [second, third] = channels === 1 ? [0, 0] : [size, 2 * size];
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor((y * h) / height) * w;
    for (let x = 0; x < width; x++, i++) {
      const [r, g, b] = [planes[i], planes[second + i], planes[third + i]];
      out[4 * i + 3] = 255;
      if (!covers) {
        out[4 * i] = r;
        out[4 * i + 1] = g;
        out[4 * i + 2] = b;
        continue;
      }
      const { part, colour, shaded } = covers[row + Math.floor((x * w) / width)];
      const grey = (r + g + b) / 3;
      const over = veil * part * (shaded ? 0.65 + (0.35 * grey) / 255 : 1);
      const under = veil * (1 - part) * grey;
      out[4 * i] = under + over * colour[0] + (1 - veil) * r;
      out[4 * i + 1] = under + over * colour[1] + (1 - veil) * g;
      out[4 * i + 2] = under + over * colour[2] + (1 - veil) * b;
    }
  }
  scratch.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(scratch, margin, top, span, cell * h);
}

// A small map without an image: for heads and layers side by side.
export function drawTile(canvas, map, [h, w], signed, patch = null) {
  const cell = Math.max(4, Math.round(96 / w));
  canvas.width = w * cell;
  canvas.height = h * cell;
  const context = canvas.getContext("2d");
  const ends = limits(map, signed);
  map.forEach((value, i) => {
    const over = cover(value, ends, signed);
    context.fillStyle = css(signed ? mix([233, 230, 240], over.colour, over.part / 0.75) : over.colour);
    context.fillRect((i % w) * cell, Math.floor(i / w) * cell, cell - 0.6, cell - 0.6);
  });
  if (patch !== null) {
    context.strokeStyle = "#7df0ff";
    context.lineWidth = 2;
    context.strokeRect((patch % w) * cell + 1, Math.floor(patch / w) * cell + 1, cell - 2, cell - 2);
  }
}

export function patchAt({ margin, top, cell }, [h, w], x, y) {
  const [column, row] = [Math.floor((x - margin) / cell), Math.floor((y - top) / cell)];
  return column >= 0 && column < w && row >= 0 && row < h ? row * w + column : null;
}
