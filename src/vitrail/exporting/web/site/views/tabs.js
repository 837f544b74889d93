// The tabs: evidence, attention, layers.

import { byId } from "../dom.js";
import { VIEWS } from "../url.js";
import { renderAttention } from "./attention.js";
import { renderEvidence } from "./evidence.js";
import { renderLayers } from "./layers.js";

const RENDER = { evidence: renderEvidence, attention: renderAttention, layers: renderLayers };

export function renderTabs(state) {
  for (const view of VIEWS) {
    const isSelected = view === state.view;
    byId(`tab-${view}`).setAttribute("aria-selected", String(isSelected));
    byId(`tab-${view}`).tabIndex = isSelected ? 0 : -1;
    byId(view).hidden = !isSelected;
  }
  RENDER[state.view](state);
}
