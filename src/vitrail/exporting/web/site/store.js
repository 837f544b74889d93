// The state of the page. Actions replace parts of it by `update`, which calls every subscriber; views only read it.

import { info } from "./info.js";

const subscribers = [];
let state = {
  source: "0", // an example's number, or "own"
  image: null, // see `showImage` in actions.js
  ownImage: null, // { pixels, name } of the latest own image, which the gallery keeps
  view: "evidence", // or "attention", "layers"
  label: null, // the explained class; null: the predicted one
  against: null, // the class that it is compared with
  layer: info.depth - 1,
  head: -1, // -1: the mean of all heads
  patch: null,
  isPinned: false, // whether the patch stays chosen when the pointer leaves it
  direction: "to", // of attention: to other patches, or from them
  hiddenPercent: 0,
  mapOpacity: 100,
  status: "Loading the model …",
  error: "",
  announcement: "", // for screen readers
};

export const getState = () => state;

export const subscribe = (subscriber) => subscribers.push(subscriber);

export function update(changes) {
  state = { ...state, ...changes };
  for (const subscriber of subscribers) subscriber(state);
}

// Changes the image's outputs, unless another image is shown by now.
export function updateImage(id, changes) {
  if (state.image?.id === id) update({ image: { ...state.image, ...changes } });
}
