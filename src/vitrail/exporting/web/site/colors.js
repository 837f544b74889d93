// Colors of classes and of maps. The colors of maps are those of explanation/render.py.

import { clamp, percentile } from "./math.js";

export const FOR = [230, 97, 0];
export const AGAINST = [61, 95, 196];
const CLASS_COLORS = [
  "#2f6fde",
  "#e0862c",
  "#2aa68a",
  "#c43b55",
  "#8c5bd6",
  "#b8a21f",
  "#27a7d8",
  "#d96bb0",
  "#6f8f2e",
  "#8d6e5a",
];
// cividis (Nuñez, Anderton & Renslow 2018) at 17 equidistant values
const CIVIDIS = [
  [0, 34, 78],
  [0, 46, 106],
  [26, 56, 111],
  [50, 67, 109],
  [67, 78, 108],
  [83, 90, 109],
  [97, 101, 111],
  [111, 112, 115],
  [125, 124, 120],
  [140, 136, 120],
  [155, 148, 118],
  [171, 160, 114],
  [188, 174, 108],
  [205, 187, 99],
  [222, 201, 88],
  [240, 216, 70],
  [254, 232, 56],
];

export const classColor = (label) => CLASS_COLORS[label % CLASS_COLORS.length];
export const parseHex = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
export const toCss = ([r, g, b], alpha = 1) => `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)} / ${alpha})`;
export const mix = (a, b, fraction) => a.map((value, i) => value + (b[i] - value) * fraction);

export function cividis(value) {
  const position = clamp(value, 0, 1) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(position), CIVIDIS.length - 2);
  return mix(CIVIDIS[below], CIVIDIS[below + 1], position - below);
}

// The values at the ends of the color scale: percentiles, so that one extreme patch does not hide the others.
export function colorLimits(map, isSigned) {
  if (isSigned) {
    const largest = percentile(Array.from(map, Math.abs), 99) || 1e-12;
    return [-largest, largest];
  }
  const low = percentile(map, 1);
  return [low, Math.max(percentile(map, 99), low + 1e-12)];
}

// The overlay of a patch: its strength from 0 to 1, the opacity and color at that strength, and the saturation of the
// image below it, which is less than 1 if its own orange and blue could be taken for marks.
export function patchOverlay(value, [low, high], isSigned) {
  if (isSigned) {
    const position = clamp(value / high, -1, 1);
    const strength = Math.abs(position);
    return { strength, opacity: 0.75 * strength, color: position >= 0 ? FOR : AGAINST, saturation: 0.35 };
  }
  const strength = clamp((value - low) / (high - low), 0, 1);
  return { strength, opacity: 0.6 * strength, color: cividis(1), saturation: 1 };
}

// A value of a pixel, 0 to 255, under the overlay: dimmed where the map is zero, lifted from black where it is strong.
export function pixelUnder(value, strength) {
  const dimmed = 0.05 * 255 + 0.5 * value;
  const lifted = 0.35 * 255 + 0.65 * value;
  return dimmed + (lifted - dimmed) * strength;
}
