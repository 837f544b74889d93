// What follows from the state.

import { hasLabels, info, patchCount } from "./info.js";
import { rank, sigmoid, softmax } from "./math.js";
import { hiddenCount } from "./occlusion.js";
import { NO_LABEL, percent } from "./text.js";
import { encodePixels, formatHash, MAX_PIXEL_BYTES } from "./url.js";

const LISTED = 5; // labels that the page lists at least, if the model has as many

// The most probable class or label, which is explained first.
const bestLabel = ({ image }) => rank(image.logits)[0];

export const explainedLabel = (state) => (state.label === null ? bestLabel(state) : state.label);

export const comparedLabel = (state) => (state.against === explainedLabel(state) ? null : state.against);

export const probabilities = (logits) => (hasLabels ? sigmoid : softmax)(logits, info.temperature);

// The predicted class, or the labels that reach their thresholds, the most probable first.
export function predictedLabels(state) {
  if (!hasLabels) return [bestLabel(state)];
  const labelProbabilities = probabilities(state.image.logits);
  return rank(state.image.logits).filter((label) => labelProbabilities[label] >= info.thresholds[label]);
}

// What the page lists: the predicted labels, then the most probable of the others.
export function listedLabels(state) {
  const predicted = predictedLabels(state);
  const others = rank(state.image.logits).filter((label) => !predicted.includes(label));
  return [...predicted, ...others.slice(0, Math.max(0, LISTED - predicted.length))];
}

// The answer in words: each predicted class or label with its probability.
export function describeAnswer(state) {
  const classProbabilities = probabilities(state.image.logits);
  const parts = predictedLabels(state).map((label) => `${className(label)} ${percent(classProbabilities[label])}`);
  return parts.join(", ") || NO_LABEL;
}

export const explainedProbability = (state) => probabilities(state.image.logits)[explainedLabel(state)];

export const className = (label) => (label === null ? null : info.classes[label]);

// The key of the current map among the image's maps.
export function mapKey(state) {
  const against = comparedLabel(state);
  return against === null ? `${explainedLabel(state)}` : `${explainedLabel(state)}|${against}`;
}

export const currentMap = (state) => state.image.maps[mapKey(state)] || null;

// The patches that are hidden by the map, as a set; null if none is.
export function hiddenPatches(state) {
  const map = currentMap(state);
  const count = hiddenCount(state.hiddenPercent / 100, patchCount);
  return map && count ? new Set(rank(map).slice(0, count)) : null;
}

export const fileName = ({ image }) => image?.name || "image.png";

// The row and column of the chosen patch, for which attention is shown.
export function attentionQuery({ view, patch }) {
  return view === "attention" && patch !== null ? [Math.floor(patch / info.grid[1]), patch % info.grid[1]] : null;
}

// The direction of the attention that is shown; that of the prediction has one alone.
export const attentionDirection = ({ patch, direction }) => (patch === null ? "to" : direction);

export const chosenHead = ({ view, head }) => (view === "attention" && head !== -1 ? head : null);

export const isOwnImageTooLarge = ({ source, image }) =>
  source === "own" && image.pixels.planes.length > MAX_PIXEL_BYTES;

// The address of the view; `withPixels` includes a small own image.
export function formatAddress(state, withPixels = false) {
  let image = state.source === "own" ? null : state.source;
  if (withPixels && state.source === "own" && !isOwnImageTooLarge(state)) {
    image = encodePixels(state.image.pixels.planes);
  }
  return formatHash({
    image,
    view: state.view,
    class: className(state.label),
    against: className(comparedLabel(state)),
    layer: state.view === "evidence" ? null : state.layer,
    head: chosenHead(state),
    patch: state.isPinned ? state.patch : null,
    direction: state.view === "attention" && state.direction === "from" ? "from" : null,
    hide: state.hiddenPercent || null,
  });
}
