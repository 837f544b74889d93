// Runs the model for the image that is shown, and stores the results: outputs, maps, probabilities with hidden patches.

import { byId } from "./dom.js";
import { info, patchCount, pixelShape } from "./info.js";
import { rank } from "./math.js";
import { startModel, SupersededError } from "./model.js";
import { CURVE_STEPS, hiddenCount, remainingPatches } from "./occlusion.js";
import { blankPadding } from "./padding.js";
import { comparedLabel, explainedLabel, mapKey, probabilities } from "./selectors.js";
import { getState, update, updateImage } from "./store.js";

let model = null; // when it has loaded

// For measurements: the functions of the worker, or null.
export const getModel = () => model;

// Resolves to null when the model has loaded, or to the reason why it cannot run.
export const modelReady = new Promise((resolve) => {
  addEventListener("DOMContentLoaded", () => resolve(loadModel()));
});

async function loadModel() {
  const start = performance.now();
  const files = ["runtime", "wasm", "weights"].map((name) => byId(name));
  const graphs = ["inspect", "map", "subset"].map((name) => byId(`graph-${name}`));
  const payload = Object.fromEntries(files.map((file) => [file.id, file.textContent]));
  payload.graphs = Object.fromEntries(graphs.map((graph) => [graph.id.slice("graph-".length), graph.textContent]));
  try {
    const started = startModel(pixelShape, payload, byId("worker").textContent);
    await started.ready;
    model = started;
    for (const script of [...files, ...graphs]) script.remove(); // they take much memory
    update({ status: `Loaded in ${((performance.now() - start) / 1000).toFixed(1)} s.` });
    if (getState().image && !getState().image.attention) inspectImage();
    return null;
  } catch (error) {
    const reason = `The model cannot run in this browser: ${error.message}`;
    update({
      status: "The model is not running: only the examples’ answers and first maps are available.",
      error: reason,
    });
    return reason;
  }
}

// The result of a request; null if a newer request replaced it, or if it failed, which the page shows.
async function resultOrNull(request) {
  try {
    return await request;
  } catch (error) {
    if (!(error instanceof SupersededError)) update({ error: `The model failed: ${error.message}` });
    return null;
  }
}

// The outputs for pixels of the model's size, or null.
export async function inspectPixels(pixels) {
  const outputs = await resultOrNull(model.inspect(pixels));
  if (!outputs) return null;
  const { logits, attention, readout, lens, layer_logits: layerLogits, milliseconds } = outputs;
  const status = `Answered in ${Math.round(milliseconds)} ms, in this page.`;
  return { logits, attention, readout, lens, layerLogits, status };
}

// Runs the model for an example, of which the page had the logits and one map alone.
export async function inspectImage() {
  if (!model) return;
  const { id, pixels } = getState().image;
  const result = await inspectPixels(pixels);
  if (!result || getState().image.id !== id) return;
  const { status, ...outputs } = result;
  update({ status, image: { ...getState().image, ...outputs } });
  refresh();
}

// Computes what the view lacks: the map, then the probabilities with hidden patches, then the curve.
export async function refresh() {
  const { image } = getState();
  if (!model || !image.attention) return;
  const key = mapKey(getState());
  const isCurrent = () => getState().image.id === image.id && mapKey(getState()) === key;
  if (!image.maps[key] || image.precomputedKey === key) {
    const outputs = await resultOrNull(model.map(image.pixels, makeTarget(getState())));
    if (!outputs || getState().image.id !== image.id) return;
    const { maps, precomputedKey } = getState().image;
    updateImage(image.id, {
      maps: { ...maps, [key]: blankPadding(outputs.map, image.pixels) },
      precomputedKey: precomputedKey === key ? null : precomputedKey,
    });
    if (!isCurrent()) return;
  }
  await measureHidden();
  if (isCurrent()) await measureCurve(key, isCurrent);
}

function makeTarget(state) {
  const target = new Float32Array(info.classes.length);
  target[explainedLabel(state)] = 1;
  if (comparedLabel(state) !== null) target[comparedLabel(state)] = -1;
  return target;
}

// Computes the class's probability with the chosen share of patches hidden.
export async function measureHidden() {
  const { image, hiddenPercent } = getState();
  const key = mapKey(getState());
  const count = hiddenCount(hiddenPercent / 100, patchCount);
  if (!model || !image.maps[key] || !count) {
    updateImage(image.id, { remaining: null });
    return;
  }
  const remaining = await probabilityWithout(image, key, count, { kind: "subset" });
  const isCurrent = mapKey(getState()) === key && getState().hiddenPercent === hiddenPercent;
  if (remaining && isCurrent) updateImage(image.id, { remaining });
}

// Computes the class's probability for every step of the curve, and shows each step at once.
async function measureCurve(key, isCurrent) {
  const { image } = getState();
  if (image.curves[key]?.length > CURVE_STEPS) return;
  const intact = probabilities(image.logits)[labelOf(key)];
  const steps = [{ fraction: 0, byMap: intact, atRandom: [intact] }];
  for (let step = 1; step <= CURVE_STEPS; step++) {
    const count = hiddenCount(step / CURVE_STEPS, patchCount);
    const remaining = await probabilityWithout(image, key, count, { priority: 5, kind: "curve" });
    if (!remaining || !isCurrent()) return;
    steps.push(remaining);
    updateImage(image.id, { curves: { ...getState().image.curves, [key]: [...steps] } });
  }
}

const labelOf = (key) => Number(key.split("|")[0]);

// The class's probability without the first `count` patches: of the map's order, and of the random orders.
async function probabilityWithout(image, key, count, options) {
  const orders = [rank(image.maps[key]), ...image.randomOrders];
  const outputs = await resultOrNull(model.subset(image.pixels, remainingPatches(orders, count), options));
  if (!outputs) return null;
  const classes = info.classes.length;
  const [byMap, ...atRandom] = orders.map(
    (_, i) => probabilities(outputs.logits.subarray(i * classes, (i + 1) * classes))[labelOf(key)],
  );
  return { fraction: count / patchCount, byMap, atRandom };
}
