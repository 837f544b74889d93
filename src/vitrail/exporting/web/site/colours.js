// Colours of classes and of maps: those of explanation/render.py, so that a map looks the same wherever it is drawn.

export const FOR = [230, 97, 0];
export const AGAINST = [61, 95, 196];
const JEWELS = [
  "#2f6fde", "#e0862c", "#2aa68a", "#c43b55", "#8c5bd6", "#b8a21f", "#27a7d8", "#d96bb0", "#6f8f2e", "#8d6e5a",
];
// cividis (Nuñez, Anderton & Renslow 2018) at seventeen places
const CIVIDIS = [
  [0, 34, 78], [0, 46, 106], [26, 56, 111], [50, 67, 109], [67, 78, 108], [83, 90, 109], [97, 101, 111], [111, 112, 115],
  [125, 124, 120], [140, 136, 120], [155, 148, 118], [171, 160, 114], [188, 174, 108], [205, 187, 99], [222, 201, 88],
  [240, 216, 70], [254, 232, 56],
];

export const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
export const css = ([r, g, b], alpha = 1) => `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)} / ${alpha})`;
export const jewel = (label) => JEWELS[label % JEWELS.length];
export const mix = (a, b, part) => a.map((value, i) => value + (b[i] - value) * part);

export function cividis(value) {
  const at = Math.min(Math.max(value, 0), 1) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return mix(CIVIDIS[below], CIVIDIS[below + 1], at - below);
}

// As numpy.percentile, linear between neighbours.
function percentile(values, q) {
  const sorted = Array.from(values).sort((a, b) => a - b);
  const at = (q / 100) * (sorted.length - 1);
  const below = Math.floor(at);
  return sorted[below] + (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]) * (at - below);
}

// The values at the ends of the scale: percentiles, so that one loud patch does not black out the others.
export function limits(map, signed) {
  if (signed) {
    const most = percentile(Array.from(map, Math.abs), 99) || 1e-12;
    return [-most, most];
  }
  const [low, high] = [percentile(map, 1), percentile(map, 99)];
  return [low, Math.max(high, low + 1e-12)];
}

// What lies over a patch: how much of the image is covered, and by which colour (which signed maps mix with the grey).
export function cover(value, [low, high], signed) {
  if (signed) {
    const part = Math.min(Math.max(value / high, -1), 1);
    return { part: 0.75 * Math.abs(part), colour: part >= 0 ? FOR : AGAINST, shaded: true };
  }
  return { part: 0.6, colour: cividis((value - low) / (high - low)), shaded: false };
}
