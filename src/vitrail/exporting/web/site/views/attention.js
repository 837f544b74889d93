// The tab of attention: layer, head and direction, small maps of all heads, and the map of the other direction.

import { byId, element } from "../dom.js";
import { drawTile } from "../drawing.js";
import { info } from "../info.js";
import { attentionMap } from "../maps.js";

export function buildAttention() {
  for (let head = 0; head < info.heads; head++) {
    const caption = element("span", { textContent: `head ${head}` });
    const button = element("button", { type: "button" }, element("canvas"), caption);
    button.dataset.head = head;
    byId("heads").append(element("li", {}, button));
  }
}

export function renderAttention(state) {
  const { layer, head, patch, direction, image } = state;
  byId("layer").value = String(layer);
  byId("head").value = String(head);
  byId("layer-value").textContent = `${layer} of 0–${info.depth - 1}`;
  byId("head-value").textContent = head === -1 ? "mean of all" : `${head} of 0–${info.heads - 1}`;
  byId("head").setAttribute("aria-valuetext", head === -1 ? "mean of all heads" : `head ${head}`);
  for (const each of ["to", "from"]) byId(`direction-${each}`).setAttribute("aria-pressed", String(each === direction));
  if (!image.attention) return;
  for (const button of byId("heads").querySelectorAll("button")) {
    const each = Number(button.dataset.head);
    button.setAttribute("aria-pressed", String(each === head));
    const { map } = attentionMap(image, { layer, head: each, patch, direction });
    drawTile(button.querySelector("canvas"), map, info.grid, false, patch);
  }
  renderOtherDirection(state);
}

function renderOtherDirection({ layer, head, patch, direction, image }) {
  const other = direction === "to" ? "from" : "to";
  byId("other").hidden = byId("other-title").hidden = patch === null;
  if (patch === null) return;
  byId("other-title").textContent = other === "to" ? "Where this patch attends" : "Which patches attend to this patch";
  const { map } = attentionMap(image, { layer, head, patch, direction: other });
  drawTile(byId("other"), map, info.grid, false, patch);
}
