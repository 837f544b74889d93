// Which patches are hidden, and what becomes of the answer: by the map, and by chance as a control.

import { ranked } from "./words.js";

export const DRAWS = 5; // random orders that the map is held against
export const STEPS = 12;

// Orders of the patches that know nothing, the same each time.
export function chances(patches) {
  let seed = 7;
  const draw = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 4294967296;
  };
  return Array.from({ length: DRAWS }, () => {
    const order = Array.from({ length: patches }, (_, i) => i);
    for (let i = patches - 1; i > 0; i--) {
      const j = Math.floor(draw() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  });
}

export const orderOf = (map) => ranked(map);

// How many patches so many per cent are; one always stays.
export const hiddenCount = (part, patches) => Math.min(Math.round((part / 100) * patches), patches - 1);

// What is left when the first `count` of each order are hidden, each in the order of the patches.
export const leftOf = (orders, count) => orders.map((order) => order.slice(count).sort((a, b) => a - b));

export function area(values) { // mean height, by trapezia
  let sum = 0;
  for (let i = 1; i < values.length; i++) sum += (values[i - 1] + values[i]) / 2;
  return sum / (values.length - 1);
}

// Two lines and a band as SVG: probability against the part that is hidden.
export function drawCurves(svg, steps, at, colour) {
  const [width, height, left, bottom] = [320, 150, 34, 22];
  const x = (part) => left + part * (width - left - 8);
  const y = (value) => 8 + (1 - value) * (height - bottom - 8);
  const path = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(steps[i].part).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const band = steps.map((s) => [s.part, Math.max(...s.chance)])
    .concat(steps.map((s) => [s.part, Math.min(...s.chance)]).reverse())
    .map(([part, value], i) => `${i ? "L" : "M"}${x(part).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const grid = [0, 0.5, 1].map((v) => `<path class="grid" d="M${left} ${y(v)}H${width - 8}"/><text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${100 * v}</text>`).join("");
  const ticks = [0, 0.5, 1].map((v) => `<text x="${x(v)}" y="${height - 5}" text-anchor="${v === 1 ? "end" : v ? "middle" : "start"}">${100 * v}${v === 1 ? " % hidden" : ""}</text>`).join("");
  const mean = steps.map((s) => s.chance.reduce((a, b) => a + b, 0) / s.chance.length);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = `${grid}${ticks}<path class="band" d="${band}Z"/><path class="chance" d="${path(mean)}"/>` +
    `<path class="named" style="stroke:${colour}" d="${path(steps.map((s) => s.named))}"/>` +
    `<path class="now" d="M${x(at)} 8V${height - bottom}"/>`;
}
