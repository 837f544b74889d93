// What is shown (`state`) and what is known of the image (`scene`).

import { chances, hiddenCount, orderOf } from "./curves.js";
import { ranked, softmax } from "./words.js";

export const $ = (id) => document.getElementById(id);
export const about = JSON.parse($("about").textContent);
export const { grid, classes, prefix, depth, heads, temperature } = about;
export const patches = grid[0] * grid[1];
export const tokens = prefix + patches;
export const shape = [about.channels, ...about.preprocess.image_size];
export const CARRIED = 4096; // bytes of an own image that a link may carry
export const VIEWS = ["evidence", "attention", "layers"];
export const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export const state = {
  image: "0", view: "evidence", asked: null, rather: null, layer: depth - 1, head: -1, patch: null, pinned: false,
  way: "to", hide: 0, veil: 100,
};
export let scene = null; // of the image that is shown: pixels, logits, maps; attention, lens and answers once the model has looked
export let turn = 0; // counts images that are shown: an answer that comes late for an earlier one is dropped

export const predicted = () => ranked(scene.logits)[0];
export const asked = () => (state.asked === null ? predicted() : state.asked);
export const rather = () => (state.rather === asked() ? null : state.rather);
export const probabilities = (logits = scene.logits) => softmax(logits, temperature);
export const mapKey = () => (rather() === null ? `${asked()}` : `${asked()}|${rather()}`);
export const mapNow = () => scene.maps.get(mapKey()) || null;
export const hiddenNow = () => {
  const map = mapNow();
  const count = hiddenCount(state.hide, patches);
  return map && count ? new Set(orderOf(map).slice(0, count)) : null;
};

export function show(next, image) {
  turn++;
  state.image = image;
  scene = { chances: chances(patches), curves: new Map(), maps: new Map(), attention: null, lens: null, answers: null, left: null, guessed: null, ...next };
}

export const fileName = () => (scene && scene.name) || "image.png";
