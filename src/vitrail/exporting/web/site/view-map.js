// The map that is shown and its caption: { map, isSigned, method, caption, unit }; without a map, a caption alone.

import { classColor } from "./colors.js";
import { info } from "./info.js";
import { attentionMap, lensMap } from "./maps.js";
import { rank } from "./math.js";
import { countContent } from "./padding.js";
import {
  attentionDirection,
  comparedLabel,
  currentMap,
  explainedLabel,
  explainedProbability,
  hiddenPatches,
} from "./selectors.js";
import { capitalize, describePatch, locateEvidence, percent, shortNumber, summarizeMap } from "./text.js";

const LENS = "logit_lens";

export function viewMap(state) {
  return { evidence: evidenceView, attention: attentionView, layers: layersView }[state.view](state);
}

// What the canvas shows; see `drawFrame` in drawing.js.
export function frameContent(state) {
  const { map, isSigned } = viewMap(state);
  const hidden = state.view === "evidence" ? hiddenPatches(state) : null;
  const { pixels, remaining } = state.image;
  return {
    pixels,
    map,
    isSigned,
    hidden,
    color: classColor(explainedLabel(state)),
    probability: hidden && remaining ? remaining.byMap : explainedProbability(state),
    patch: state.patch,
    isPinned: state.isPinned,
    opacity: state.mapOpacity / 100,
  };
}

const question = (state) => {
  const against = comparedLabel(state);
  const rather = against === null ? "" : ` rather than ${info.classes[against]}`;
  return `evidence for ${info.classes[explainedLabel(state)]}${rather}`;
};

function evidenceView(state) {
  const map = currentMap(state);
  if (!map) return { map: null, isSigned: true, caption: "The map appears when the model has loaded." };
  const summary = summarizeMap(question(state), explainedProbability(state), info.method, map, state.image.pixels);
  const caption = `${capitalize(summary)}.${describeValue(state, map)}`;
  return { map, isSigned: true, method: info.method, caption, unit: "contribution to the log-odds" };
}

function attentionView(state) {
  if (!state.image.attention) {
    return { map: null, isSigned: false, caption: "Attention appears when the model has loaded." };
  }
  const { map, prefixSum } = attentionMap(state.image, state);
  const caption = describeAttention(state, map, prefixSum);
  return { map, isSigned: false, method: "attention", caption, unit: "fraction of attention" };
}

function layersView(state) {
  if (!state.image.lens) return { map: null, isSigned: true, caption: "The layers appear when the model has loaded." };
  const map = lensMap(state.image, state.layer, explainedLabel(state), comparedLabel(state));
  const summary = summarizeMap(question(state), explainedProbability(state), LENS, map, state.image.pixels);
  const caption = `Layer ${state.layer}: ${summary}.${describeValue(state, map)}`;
  const unit = comparedLabel(state) === null ? "logit above the mean of all classes" : "difference of logits";
  return { map, isSigned: true, method: LENS, caption, unit };
}

function describeValue(state, map) {
  if (state.patch === null) return "";
  const value = map[state.patch];
  const side = value < 0 ? "against" : "for";
  const patch = capitalize(describePatch(state.patch, info.grid));
  return ` ${patch}: ${value > 0 ? "+" : ""}${shortNumber(value)} ${side} ${info.classes[explainedLabel(state)]}.`;
}

function describeAttention(state, map, prefixSum) {
  const { patch } = state;
  const direction = attentionDirection(state);
  const start = `Layer ${state.layer}, ${state.head === -1 ? "mean of all heads" : `head ${state.head}`}: `;
  const located = locateEvidence(map, info.grid);
  const verb = direction === "to" ? "goes to" : "comes from";
  const spread = located ? `half of it ${verb} ${located.patches} of ${countContent(state.image.pixels)} patches` : "";
  const tokens = info.prefix > 1 ? `the ${info.prefix} tokens without a patch` : "the token without a patch";
  const rest = prefixSum > 0.005 && direction === "to" ? `; ${percent(prefixSum)} goes to ${tokens}` : "";
  if (patch === null) {
    const area = located ? `, most in the ${located.area}` : "";
    return `${start}the attention of the prediction; ${spread}${area}${rest}. Point at a patch to see its attention.`;
  }
  const name = describePatch(patch, info.grid);
  const strongest = rank(map)[0];
  const other = strongest === patch ? "itself" : describePatch(strongest, info.grid);
  if (direction === "from") {
    const received = `${percent(map[strongest])} of its attention`;
    return `${start}${name} receives most attention from ${other} (${received}); ${spread}.`;
  }
  const distance = `${meanDistance(map, patch).toFixed(1)} patches away on average`;
  return `${start}${name} attends most to ${other} (${percent(map[strongest])}); ${spread}, ${distance}${rest}.`;
}

// The mean distance from a patch, weighted by the map.
function meanDistance(map, patch) {
  const w = info.grid[1];
  const [y, x] = [Math.floor(patch / w), patch % w];
  let distance = 0;
  let total = 0;
  map.forEach((value, p) => {
    distance += value * Math.hypot(Math.floor(p / w) - y, (p % w) - x);
    total += value;
  });
  return distance / total;
}
