// The tab of layers: for each layer a small map of the logit lens, and the prediction if the model ended there.

import { byId, element } from "../dom.js";
import { drawTile } from "../drawing.js";
import { info } from "../info.js";
import { lensMap } from "../maps.js";
import { rank } from "../math.js";
import { className, comparedLabel, explainedLabel, probabilities } from "../selectors.js";
import { percent } from "../text.js";

export function buildLayers() {
  for (let layer = 0; layer < info.depth; layer++) {
    const name = element("b", { textContent: "…" });
    const caption = element("span", { textContent: `after layer ${layer}` });
    const button = element("button", { type: "button" }, element("canvas"), name, caption);
    button.dataset.layer = layer;
    byId("layers-list").append(element("li", {}, button));
  }
}

export function renderLayers(state) {
  const { lens, layerLogits } = state.image;
  if (!lens) return;
  const classes = info.classes.length;
  for (const button of byId("layers-list").querySelectorAll("button")) {
    const layer = Number(button.dataset.layer);
    button.setAttribute("aria-pressed", String(layer === state.layer));
    const map = lensMap(state.image, layer, explainedLabel(state), comparedLabel(state));
    drawTile(button.querySelector("canvas"), map, info.grid, true, state.patch);
    const logits = layerLogits.subarray(layer * classes, (layer + 1) * classes);
    const best = rank(logits)[0];
    button.querySelector("b").textContent = className(best);
    button.querySelector("span").textContent = `${percent(probabilities(logits)[best])} after layer ${layer}`;
  }
}
