// The model is asked: for its answer, for maps, and for what is left when patches are hidden.

import { hiddenCount, leftOf, orderOf, STEPS } from "./curves.js";
import { draw, drawEvidence, problem } from "./draw.js";
import { openModel, Overtaken } from "./model.js";
import { $, asked, classes, mapKey, patches, probabilities, rather, scene, shape, state, turn } from "./state.js";

export let model = null;

// Resolves to why the model cannot run, if it cannot.
async function wake() {
  const start = performance.now();
  const payload = { graphs: {} };
  for (const name of ["runtime", "wasm", "weights"]) payload[name] = $(name).textContent;
  for (const name of ["look", "map", "keep"]) payload.graphs[name] = $(`graph-${name}`).textContent;
  try {
    model = openModel(shape, payload, $("worker").textContent);
    await model.ready;
    model.awake = true;
    for (const name of ["runtime", "wasm", "weights", "graph-look", "graph-map", "graph-keep"]) $(name).remove();
    $("status").textContent = `Awake after ${((performance.now() - start) / 1000).toFixed(1)} s.`;
    if (scene && !scene.attention) look();
    return null;
  } catch (error) {
    $("status").textContent = "The model sleeps: only the examples’ answers and first maps can be seen.";
    const why = `The model cannot run in this browser: ${error.message}`;
    problem(why);
    return why;
  }
}

export async function quietly(promise) {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof Overtaken)) problem(`The model could not answer: ${error.message}`);
    return null;
  }
}

export async function look() {
  const [now, own] = [turn, scene];
  const found = await quietly(model.look(own.image));
  if (!found || now !== turn) return;
  Object.assign(own, { logits: found.logits, attention: found.attention, lens: found.lens, answers: found.answers });
  $("status").textContent = `Answered in ${Math.round(found.milliseconds)} ms, in this page.`;
  draw();
  refresh();
}

// The map that is asked for, what is left of the answer, then the curves, each when the one before is there.
export async function refresh() {
  if (!model || !scene.attention) return;
  const [now, own, key] = [turn, scene, mapKey()];
  const still = () => now === turn && key === mapKey();
  if (!own.maps.has(key) || own.guessed === key) {
    const target = new Float32Array(classes.length);
    target[asked()] = 1;
    if (rather() !== null) target[rather()] = -1;
    const found = await quietly(model.map(own.image, target));
    if (!found) return;
    own.maps.set(key, found.map);
    if (own.guessed === key) own.guessed = null;
    if (!still()) return;
    draw();
  }
  await measure();
  if (still()) await trace_(own, key, still);
}

async function leftAfter(own, key, count, options) {
  const label = Number(key.split("|")[0]);
  const sets = leftOf([orderOf(own.maps.get(key)), ...own.chances], count);
  const found = await quietly(model.keep(own.image, sets, options));
  if (!found) return null;
  const rows = sets.map((_, i) => probabilities(found.logits.subarray(i * classes.length, (i + 1) * classes.length))[label]);
  return { part: count / patches, named: rows[0], chance: rows.slice(1) };
}

export async function measure() {
  const [now, own, key, hide] = [turn, scene, mapKey(), state.hide];
  const count = hiddenCount(hide, patches);
  if (!model || !own.maps.has(key) || !count) {
    own.left = null;
    return draw();
  }
  const found = await leftAfter(own, key, count, { lane: "keep" });
  if (!found || now !== turn || key !== mapKey() || hide !== state.hide) return;
  own.left = found;
  draw();
}

async function trace_(own, key, still) {
  if (own.curves.has(key) && own.curves.get(key).length > STEPS) return;
  const label = Number(key.split("|")[0]);
  const whole = probabilities(own.logits)[label];
  const steps = [{ part: 0, named: whole, chance: [whole] }];
  own.curves.set(key, steps);
  for (let step = 1; step <= STEPS; step++) {
    const count = Math.min(Math.round((step / STEPS) * patches), patches - 1);
    const found = await leftAfter(own, key, count, { rank: 5, lane: "curve" });
    if (!found || !still()) return void (steps.length <= STEPS && own.curves.delete(key));
    steps.push(found);
    if (state.view === "evidence") drawEvidence();
  }
}

export const waking = new Promise((resolve) => addEventListener("DOMContentLoaded", () => resolve(wake())));
