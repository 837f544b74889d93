// The large canvas with the image and the map, its caption and its color scale.

import { AGAINST, cividis, colorLimits, FOR, toCss } from "../colors.js";
import { byId } from "../dom.js";
import { drawFrame, layoutFrame, patchAt } from "../drawing.js";
import { info } from "../info.js";
import { className, comparedLabel, explainedLabel } from "../selectors.js";
import { percent, shortNumber } from "../text.js";
import { frameContent, viewMap } from "../view-map.js";

let frame = null; // the layout of the canvas

export function renderViewer(state) {
  const { map, isSigned, caption, unit } = viewMap(state);
  drawFrame(resizeCanvas(), frame, frameContent(state));
  byId("caption").textContent = caption;
  byId("map-opacity").value = String(state.mapOpacity);
  renderScale(state, map, isSigned, unit);
}

// The patch below the pointer, or null.
export function patchAtPointer(event) {
  const box = byId("canvas").getBoundingClientRect();
  const scale = frame.width / box.width;
  return patchAt(frame, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
}

// Fits the canvas to its column and to the screen's resolution.
function resizeCanvas() {
  const canvas = byId("canvas");
  const width = Math.min(canvas.parentElement.clientWidth || 440, 464);
  const ratio = window.devicePixelRatio || 1;
  frame = layoutFrame(width, info.grid);
  const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(frame.height * ratio)];
  if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) {
    canvas.width = pixelWidth;
    canvas.height = pixelHeight;
    canvas.style.aspectRatio = `${width} / ${frame.height}`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

function renderScale(state, map, isSigned, unit) {
  byId("scale").style.visibility = map ? "visible" : "hidden";
  if (!map) return;
  const [low, high] = colorLimits(map, isSigned);
  byId("scale-low").textContent = isSigned ? `−${shortNumber(high)}` : percent(low, 1);
  byId("scale-high").textContent = isSigned ? `+${shortNumber(high)}` : percent(high, 1);
  const colors = isSigned
    ? `${toCss(AGAINST)}, #8a8794 50%, ${toCss(FOR)}`
    : [0, 0.25, 0.5, 0.75, 1].map((value) => toCss(cividis(value))).join(", ");
  byId("scale-ramp").style.background = `linear-gradient(90deg, ${colors})`;
  const name = className(explainedLabel(state));
  const other = className(comparedLabel(state));
  const ends = other === null ? `← against ${name} · for ${name} →` : `← ${other} · ${name} →`;
  byId("scale-unit").textContent = isSigned ? `${ends} (${unit})` : unit;
}
