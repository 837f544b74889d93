// The keys that work while the canvas has the focus.

import {
  announceCaption,
  choosePatch,
  setHead,
  setHiddenPercent,
  setLabel,
  setLayer,
  setMapOpacity,
  setView,
} from "./actions.js";
import { info } from "./info.js";
import { clamp } from "./math.js";
import { listedLabels } from "./selectors.js";
import { getState } from "./store.js";

const HIDE_STEP = 5;
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const ACTIONS = {
  Enter: ({ patch, isPinned }) => choosePatch(patch, patch !== null && !isPinned),
  Escape: () => choosePatch(null, false),
  "[": ({ layer }) => setLayer(layer - 1),
  "]": ({ layer }) => setLayer(layer + 1),
  ",": ({ head }) => setHead(head - 1),
  ".": ({ head }) => setHead(head + 1),
  "-": ({ hiddenPercent }) => setHiddenPercent(hiddenPercent - HIDE_STEP),
  "+": ({ hiddenPercent }) => setHiddenPercent(hiddenPercent + HIDE_STEP),
  "=": ({ hiddenPercent }) => setHiddenPercent(hiddenPercent + HIDE_STEP),
  p: ({ mapOpacity }) => setMapOpacity(mapOpacity ? 0 : 100),
  e: () => setView("evidence"),
  a: () => setView("attention"),
  l: () => setView("layers"),
};

export function handleKey(event) {
  const state = getState();
  if (!state.image || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = findAction(event.key, state);
  if (!action) return;
  action(state);
  event.preventDefault();
  announceCaption();
}

function findAction(key, state) {
  if (MOVES[key]) return () => movePatch(state.patch, MOVES[key]);
  if (/^[1-5]$/.test(key)) {
    const label = listedLabels(state)[Number(key) - 1];
    return () => label !== undefined && setLabel(label);
  }
  return ACTIONS[key];
}

// The first key chooses the patch in the middle.
function movePatch(patch, [down, right]) {
  const [h, w] = info.grid;
  if (patch === null) {
    choosePatch(Math.floor(h / 2) * w + Math.floor(w / 2), true);
    return;
  }
  const row = clamp(Math.floor(patch / w) + down, 0, h - 1);
  const column = clamp((patch % w) + right, 0, w - 1);
  choosePatch(row * w + column, true);
}
