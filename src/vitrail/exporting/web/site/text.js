// Numbers and maps as text; `summarizeMap` gives the sentence of `Explanation.summary` in Python.

import { info } from "./info.js";
import { rank, splitInThirds, sum } from "./math.js";
import { countContent } from "./padding.js";

export const percent = (fraction, digits = 0) => `${(100 * fraction).toFixed(digits)}\u00a0%`;

export const NO_LABEL = "no label";

export const capitalize = (text) => text[0].toUpperCase() + text.slice(1);

export const describePatch = (patch, [, w]) => `row ${Math.floor(patch / w)}, column ${patch % w}`;

// Two significant digits, without trailing zeros.
export function shortNumber(value) {
  if (value === 0) return "0";
  const digits = value.toPrecision(2);
  return digits.replace(/(\.\d*?)0+(e|$)/, "$1$2").replace(/\.(e|$)/, "$1");
}

export function quoteForShell(text) {
  return /^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

// The number of patches that hold half of a map's positive values, and the ninth of the image that holds the most.
export function locateEvidence(map, [h, w]) {
  const positive = Array.from(map, (value) => Math.max(value, 0));
  const total = sum(positive);
  if (total === 0) return null;
  const order = rank(positive);
  let patches = 0;
  for (let share = 0; share < 0.5 && patches < order.length; patches++) share += positive[order[patches]] / total;
  let strongest = { area: "", fraction: -1 };
  splitInThirds(h).forEach(([top, bottom], i) =>
    splitInThirds(w).forEach(([left, right], j) => {
      let evidence = 0;
      for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) evidence += positive[y * w + x];
      if (evidence / total > strongest.fraction) {
        const area = `${["upper", "middle", "lower"][i]} ${["left", "center", "right"][j]}`;
        strongest = { area, fraction: evidence / total };
      }
    }),
  );
  return { patches, ...strongest };
}

export function summarizeMap(question, probability, method, map, pixels) {
  const start = `${question} (${(100 * probability).toFixed(0)}%, ${method}): `;
  const located = locateEvidence(map, info.grid);
  if (!located) return `${start}nothing in the image`;
  const { patches, area, fraction } = located;
  const share = `${(100 * fraction).toFixed(0)}%`;
  return `${start}half of it is in ${patches} of ${countContent(pixels)} patches, most in the ${area} (${share})`;
}
