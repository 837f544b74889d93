// What people do.

import { look, measure, model, quietly, refresh, waking } from "./ask.js";
import { ownTile } from "./build.js";
import { draw, problem, speak } from "./draw.js";
import { fitted } from "./fit.js";
import { readExample, readFile } from "./read.js";
import { shownMap } from "./facts.js";
import { $, about, classes, depth, heads, predicted, probabilities, scene, show, state } from "./state.js";
import { percent } from "./words.js";

let request = 0; // counts images that were asked for: one that is there late does not replace what was asked for since

export function ask(label, against = state.rather) {
  state.asked = label;
  state.rather = against === label ? null : against;
  scene.left = null;
  draw();
  speak(shownMap().said);
  refresh();
}

export function choosePatch(patch, pinned) {
  state.patch = patch;
  state.pinned = pinned;
  draw();
}

export function setView(view, focus = false) {
  state.view = view;
  draw();
  if (focus) $(`tab-${view}`).focus();
}

export function setLayer(layer) {
  state.layer = Math.min(Math.max(layer, 0), depth - 1);
  draw();
}

export function setHead(head) {
  state.head = Math.min(Math.max(head, -1), heads - 1);
  draw();
}

export function setHide(part) {
  state.hide = Math.min(Math.max(part, 0), 95);
  draw();
  measure();
}

export function setVeil(part) {
  state.veil = part;
  $("veil").value = String(part);
  draw();
}

export async function showExample(number, keep = false) {
  const mine = ++request;
  const example = about.examples[number];
  const image = await readExample(example.image, about.channels);
  if (mine !== request) return;
  if (!keep) askNothing();
  show({ image, name: example.name, logits: Float32Array.from(example.logits), truth: example.truth }, String(number));
  scene.guessed = String(predicted());
  scene.maps.set(scene.guessed, Float32Array.from(example.map)); // Python's, until the model's own
  draw();
  if (model && model.awake) look();
}

// Whether all is done: the image is shown, or another was asked for meanwhile.
export async function showOwn(image, name, keep = false) {
  const mine = ++request;
  try {
    const seen = fitted(image, about.preprocess);
    const asleep = await waking;
    if (mine !== request) return true;
    if (asleep) throw new Error(asleep);
    const found = await quietly(model.look(seen));
    if (mine !== request) return true;
    if (!found) return false;
    if (!keep) askNothing();
    show({ image: seen, name, ...found }, "own");
    $("status").textContent = `Answered in ${Math.round(found.milliseconds)} ms, in this page.`;
    ownTile(seen);
    draw();
    speak(`${classes[predicted()]}, ${percent(probabilities()[predicted()])}`);
    refresh();
    return true;
  } catch (error) {
    problem(error.message);
    return false;
  }
}

function askNothing() {
  Object.assign(state, { asked: null, rather: null, patch: null, pinned: false, hide: 0 });
  problem("");
}

export async function takeFile(file) {
  if (!file) return;
  const mine = ++request;
  problem("");
  try {
    const image = await readFile(file, about.channels);
    if (mine === request) await showOwn(image, file.name || "image.png");
  } catch (error) {
    if (mine === request) problem(error.message);
  }
}
