// What people do: each action changes the state, and starts the computation that follows from it.

import { fitImage, locatePhoto } from "./fit.js";
import { readImageFile, readImageUrl } from "./image-files.js";
import { inspectImage, inspectPixels, measureHidden, modelReady, refresh } from "./inference.js";
import { info, patchCount } from "./info.js";
import { clamp, rank } from "./math.js";
import { drawRandomOrders } from "./occlusion.js";
import { describeAnswer } from "./selectors.js";
import { getState, update } from "./store.js";
import { viewMap } from "./view-map.js";

let requests = 0; // counts requests for an image: one that finishes after a newer one started is dropped
let images = 0;

export function setLabel(label, against = getState().against) {
  if (!getState().image) return;
  const image = { ...getState().image, remaining: null };
  update({ label, against: against === label ? null : against, image });
  announceCaption();
  refresh();
}

export const choosePatch = (patch, isPinned) => update({ patch, isPinned });
export const setView = (view) => update({ view });
export const setLayer = (layer) => update({ layer: clamp(layer, 0, info.depth - 1) });
export const setHead = (head) => update({ head: clamp(head, -1, info.heads - 1) });
export const setDirection = (direction) => update({ direction });
export const setMapOpacity = (mapOpacity) => update({ mapOpacity });
export const setError = (error) => update({ error });

export function setHiddenPercent(percentage) {
  update({ hiddenPercent: clamp(percentage, 0, 95) });
  measureHidden();
}

export const announceCaption = () => update({ announcement: viewMap(getState()).caption });

// Shows an example; `keepView` keeps the class, the patch and the hidden patches.
export async function showExample(number, { keepView = false } = {}) {
  const request = ++requests;
  const example = info.examples[number];
  const photo = example.size && locatePhoto(example.size, info.preprocess);
  const pixels = { ...(await readImageUrl(example.image, info.channels)), photo, isFitted: true };
  if (request !== requests) return;
  if (!keepView) resetView();
  const logits = Float32Array.from(example.logits);
  const key = String(rank(logits)[0]);
  const maps = { [key]: Float32Array.from(example.map) };
  showImage(String(number), { pixels, name: example.name, truth: example.truth, logits, maps, precomputedKey: key });
  inspectImage();
}

// Shows an image of any size. Returns whether it is shown, or a newer request replaced it.
export async function showOwnImage(image, name, { keepView = false } = {}) {
  const request = ++requests;
  try {
    const pixels = fitImage(image, info.preprocess);
    const reason = await modelReady;
    if (request !== requests) return true;
    if (reason) throw new Error(reason);
    const result = await inspectPixels(pixels);
    if (request !== requests) return true;
    if (!result) return false;
    if (!keepView) resetView();
    const { status, ...outputs } = result;
    update({ status, ownImage: { pixels, name } });
    showImage("own", { pixels, name, ...outputs });
    update({ announcement: describeAnswer(getState()) });
    refresh();
    return true;
  } catch (error) {
    setError(error.message);
    return false;
  }
}

export async function showFile(file) {
  if (!file) return;
  const request = ++requests;
  setError("");
  try {
    const image = await readImageFile(file, info.channels);
    if (request === requests) await showOwnImage(image, file.name || "image.png");
  } catch (error) {
    if (request === requests) setError(error.message);
  }
}

// Shows the view that a link describes; see `parseHash` in url.js.
export async function openView({ example, pixels, isDamaged, ...view }) {
  update({ ...view, error: isDamaged ? "The image in this link is damaged." : "" });
  if (pixels && (await showOwnImage(pixels, "image.png", { keepView: true }))) return;
  await showExample(example, { keepView: true });
}

// The outputs of the model are null until it has run, or keyed by class in `maps` and `curves`.
function showImage(source, image) {
  update({
    source,
    image: {
      id: ++images,
      truth: null,
      attention: null,
      lens: null,
      layerLogits: null,
      maps: {},
      precomputedKey: null, // of a map that Python computed, until the page has computed it
      curves: {},
      remaining: null, // the probability with hidden patches
      randomOrders: drawRandomOrders(patchCount),
      ...image,
    },
  });
}

function resetView() {
  update({ label: null, against: null, patch: null, isPinned: false, hiddenPercent: 0, error: "" });
}
