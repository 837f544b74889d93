// The facts about the classifier that the page carries: names, sizes, preprocessing, examples.

import { byId } from "./dom.js";

export const info = JSON.parse(byId("info").textContent);
export const hasLabels = info.answer === "labels"; // any number for each image, instead of one class
export const patchCount = info.grid[0] * info.grid[1];
export const tokenCount = info.prefix + patchCount;
export const pixelShape = [info.channels, ...info.preprocess.image_size];
