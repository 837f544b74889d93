// The tab that hides patches: the probability that remains, and the curve over all shares of hidden patches.

import { byId } from "../dom.js";
import { patchCount } from "../info.js";
import { mean } from "../math.js";
import { areaUnderCurve, CURVE_STEPS, hiddenCount } from "../occlusion.js";
import { className, explainedLabel, explainedProbability, mapKey } from "../selectors.js";
import { percent } from "../text.js";

const CLEAR_DIFFERENCE = 0.02; // between the areas under two curves
const [WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN] = [320, 150, 34, 22, 8];

export function renderEvidence(state) {
  const count = hiddenCount(state.hiddenPercent / 100, patchCount);
  byId("hide").value = String(state.hiddenPercent);
  byId("hide-value").textContent = `${state.hiddenPercent}%: ${count} of ${patchCount}`;
  byId("hide").setAttribute("aria-valuetext", `${state.hiddenPercent} percent, ${count} of ${patchCount} patches`);
  renderBars(state, count);
  const steps = state.image.curves[mapKey(state)];
  byId("curve").innerHTML = steps ? curveSvg(steps, count / patchCount) : "";
  if (steps?.length > CURVE_STEPS) byId("curve-summary").textContent = summarizeCurve(state, steps);
}

function renderBars(state, count) {
  const intact = explainedProbability(state);
  const remaining = count === 0 ? { byMap: intact, atRandom: [intact] } : state.image.remaining;
  const values = { map: remaining && remaining.byMap, random: remaining && mean(remaining.atRandom) };
  for (const [name, value] of Object.entries(values)) {
    byId(`bar-${name}`).style.setProperty("--fraction", value === null ? 0 : value);
    byId(`value-${name}`).textContent = value === null ? "–" : percent(value, 1);
  }
}

function summarizeCurve(state, steps) {
  const areaOf = (valueOf) =>
    areaUnderCurve(
      steps.map((step) => step.fraction),
      steps.map(valueOf),
    );
  const byMap = areaOf((step) => step.byMap);
  const atRandom = areaOf((step) => mean(step.atRandom));
  let verdict = "the map is no better than chance for this image";
  if (byMap < atRandom - CLEAR_DIFFERENCE) verdict = "the prediction does depend on the patches that the map names";
  if (byMap > atRandom + CLEAR_DIFFERENCE) verdict = "the map names the wrong patches for this image";
  return (
    `Mean probability of ${className(explainedLabel(state))} over all steps: ${percent(byMap)} without the most ` +
    `important patches, ${percent(atRandom)} without random patches: ${verdict}. Hidden patches are left out of the ` +
    "computation; no gray patch replaces them."
  );
}

const toX = (fraction) => LEFT + fraction * (WIDTH - LEFT - MARGIN);
const toY = (probability) => MARGIN + (1 - probability) * (HEIGHT - BOTTOM - MARGIN);

const tracePath = (points) =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");

// Probability against the fraction of hidden patches: by the map, at random as a mean with a band, and the slider.
function curveSvg(steps, hiddenFraction) {
  const points = (valueOf) => steps.map((step) => [step.fraction, valueOf(step)]);
  const highest = points((step) => Math.max(...step.atRandom));
  const lowest = points((step) => Math.min(...step.atRandom)).reverse();
  return [
    ...[0, 0.5, 1].map(gridLine),
    ...[0, 0.5, 1].map(tickLabel),
    `<path class="band" d="${tracePath([...highest, ...lowest])}Z"/>`,
    `<path class="random" d="${tracePath(points((step) => mean(step.atRandom)))}"/>`,
    `<path class="map" d="${tracePath(points((step) => step.byMap))}"/>`,
    `<path class="current" d="M${toX(hiddenFraction)} ${MARGIN}V${HEIGHT - BOTTOM}"/>`,
  ].join("");
}

function gridLine(value) {
  const text = `<text x="${LEFT - 6}" y="${toY(value) + 4}" text-anchor="end">${100 * value}</text>`;
  return `<path class="grid" d="M${LEFT} ${toY(value)}H${WIDTH - MARGIN}"/>${text}`;
}

function tickLabel(value) {
  const anchor = { 0: "start", 0.5: "middle", 1: "end" }[value];
  const unit = value === 1 ? " % hidden" : "";
  return `<text x="${toX(value)}" y="${HEIGHT - 5}" text-anchor="${anchor}">${100 * value}${unit}</text>`;
}
