// The state as the page's address, and back.

import { showExample, showOwn } from "./act.js";
import { problem } from "./draw.js";
import { writeHash } from "./hash.js";
import { about, CARRIED, classes, depth, heads, patches, rather, scene, shape, state, VIEWS } from "./state.js";

export function hashNow(carry = false) {
  const image = carry && state.image === "own" && scene.image.planes.length <= CARRIED ? `px:${base64(scene.image.planes)}` : state.image;
  return writeHash({
    image: image === "own" ? null : image, view: state.view, class: state.asked === null ? null : classes[state.asked],
    rather: rather() === null ? null : classes[rather()],
    layer: state.view === "evidence" ? null : state.layer, head: state.view === "attention" && state.head !== -1 ? state.head : null,
    patch: state.pinned ? state.patch : null, way: state.view === "attention" && state.way === "from" ? "from" : null,
    hide: state.hide || null,
  });
}

const base64 = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

export async function open(wanted) {
  problem("");
  const label = (name) => (classes.includes(name) ? classes.indexOf(name) : null);
  const number = (text, low, high, otherwise) => (/^-?\d+$/.test(text || "") && +text >= low && +text <= high ? +text : otherwise);
  const patch = number(wanted.patch, 0, patches - 1, null);
  Object.assign(state, {
    view: VIEWS.includes(wanted.view) ? wanted.view : "evidence", asked: label(wanted.class), rather: label(wanted.rather),
    layer: number(wanted.layer, 0, depth - 1, depth - 1), head: number(wanted.head, 0, heads - 1, -1), patch, pinned: patch !== null,
    way: wanted.way === "from" ? "from" : "to", hide: number(wanted.hide, 0, 95, 0),
  });
  if (wanted.image && wanted.image.startsWith("px:")) {
    try {
      const planes = Uint8Array.from(atob(wanted.image.slice(3).replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
      if (planes.length === shape[0] * shape[1] * shape[2]) {
        if (await showOwn({ width: shape[2], height: shape[1], planes }, "image.png", true)) return;
      }
    } catch {
      problem("The image in this link is damaged.");
    }
  }
  await showExample(number(wanted.image, 0, about.examples.length - 1, 0), true);
}
