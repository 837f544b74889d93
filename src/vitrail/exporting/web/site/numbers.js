// The numbers of the view as JSON, with the keys of `Explanation.to_json` in Python and more.

import { hasLabels, info } from "./info.js";
import {
  attentionDirection,
  attentionQuery,
  chosenHead,
  className,
  comparedLabel,
  explainedLabel,
  fileName,
  hiddenPatches,
  listedLabels,
  predictedLabels,
  probabilities,
} from "./selectors.js";
import { viewMap } from "./view-map.js";

// The rows of a flat array.
const splitRows = (values, count, width) =>
  values && Array.from({ length: count }, (_, i) => Array.from(values.slice(i * width, (i + 1) * width)));

export function viewNumbers(state) {
  const { image, view } = state;
  const { map, isSigned, method, caption } = viewMap(state);
  const classProbabilities = probabilities(image.logits);
  const predicted = predictedLabels(state).map(className);
  const { remaining } = image;
  return {
    image: fileName(state),
    model: info.name,
    label: className(explainedLabel(state)),
    probability: classProbabilities[explainedLabel(state)],
    predicted: predicted.join(";"),
    ...(hasLabels && { labels: predicted }),
    against: className(comparedLabel(state)),
    method: method || null,
    layer: view === "evidence" ? null : state.layer,
    head: chosenHead(state),
    query: attentionQuery(state),
    direction: view === "attention" ? attentionDirection(state) : null,
    signed: isSigned,
    summary: caption,
    map: splitRows(map, ...info.grid),
    top: listedLabels(state).map((label) => ({ label: className(label), probability: classProbabilities[label] })),
    logits: Array.from(image.logits),
    hidden:
      state.hiddenPercent && remaining
        ? { patches: [...(hiddenPatches(state) || [])], probability: remaining.byMap, at_random: remaining.atRandom }
        : null,
    layer_logits: splitRows(image.layerLogits, info.depth, info.classes.length),
  };
}
