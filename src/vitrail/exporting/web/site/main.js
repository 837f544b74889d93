// The page: what people touch, tied to what it does; then it opens.

import { open } from "./address.js";
import { waking } from "./ask.js";
import { build } from "./build.js";
import { openCamera, stopCamera, takePicture } from "./camera.js";
import { ask, choosePatch, setHead, setHide, setLayer, setVeil, setView, takeFile } from "./act.js";
import { draw, place, problem, speak } from "./draw.js";
import { fitted } from "./fit.js";
import { readHash } from "./hash.js";
import { copyLink, saveNumbers, savePicture } from "./keep.js";
import { numbers } from "./facts.js";
import { $, about, asked, grid, scene, state, VIEWS } from "./state.js";
import { patchAt } from "./window.js";
import { ranked } from "./words.js";

function listen() {
  $("asked").onchange = (event) => ask(Number(event.target.value));
  $("rather").onchange = (event) => ask(asked(), event.target.value === "" ? null : Number(event.target.value));
  VIEWS.forEach((view, i) => {
    $(`tab-${view}`).onclick = () => setView(view);
    $(`tab-${view}`).onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: VIEWS.length - 1 }[event.key];
      if (step) setView(VIEWS[(i + step) % VIEWS.length], true);
    };
  });
  $("hide").oninput = (event) => setHide(Number(event.target.value));
  $("veil").oninput = (event) => setVeil(Number(event.target.value));
  $("layer").oninput = (event) => setLayer(Number(event.target.value));
  $("head").oninput = (event) => setHead(Number(event.target.value));
  for (const way of ["to", "from"]) $(`way-${way}`).onclick = () => { state.way = way; draw(); };

  const pane = $("pane");
  const at = (event) => {
    const box = $("canvas").getBoundingClientRect();
    const scale = place.width / box.width;
    return patchAt(place, grid, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  pane.onpointermove = (event) => {
    if (!scene || state.pinned || event.pointerType === "touch") return;
    const patch = at(event);
    if (patch !== state.patch) choosePatch(patch, false);
  };
  pane.onpointerleave = () => { if (scene && !state.pinned) choosePatch(null, false); };
  pane.onclick = (event) => {
    if (!scene) return;
    const patch = at(event);
    choosePatch(patch, patch !== null && !(state.pinned && state.patch === patch));
  };
  pane.onkeydown = onKey;

  $("file").onchange = (event) => { takeFile(event.target.files[0]); event.target.value = ""; };
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (file) takeFile(file);
  });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    takeFile(event.dataTransfer.files[0]);
  });
  $("camera").onclick = openCamera;
  $("take-it").onclick = takePicture;
  $("leave").onclick = () => $("taking").close();
  $("taking").onclose = stopCamera;
  $("png").onclick = savePicture;
  $("json").onclick = saveNumbers;
  $("link").onclick = copyLink;
  addEventListener("resize", () => draw());
  addEventListener("hashchange", () => { open(readHash(location.hash)); });
}

function onKey(event) {
  if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
  const [h, w] = grid;
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const keys = {
    Enter: () => choosePatch(state.patch, state.patch !== null && !state.pinned), Escape: () => choosePatch(null, false),
    "[": () => setLayer(state.layer - 1), "]": () => setLayer(state.layer + 1),
    ",": () => setHead(state.head - 1), ".": () => setHead(state.head + 1),
    "-": () => setHide(state.hide - 5), "+": () => setHide(state.hide + 5), "=": () => setHide(state.hide + 5),
    p: () => setVeil(state.veil ? 0 : 100), e: () => setView("evidence"), a: () => setView("attention"), l: () => setView("layers"),
  };
  if (moves[event.key]) {
    const from = state.patch === null ? Math.floor(h / 2) * w + Math.floor(w / 2) : state.patch;
    const step = state.patch === null ? [0, 0] : moves[event.key];
    const row = Math.min(Math.max(Math.floor(from / w) + step[0], 0), h - 1);
    const column = Math.min(Math.max((from % w) + step[1], 0), w - 1);
    choosePatch(row * w + column, true);
  } else if (/^[1-5]$/.test(event.key)) {
    const label = ranked(scene.logits)[Number(event.key) - 1];
    if (label !== undefined) ask(label);
  } else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
  speak($("caption").textContent);
}

build();
listen();
const opened = open(readHash(location.hash)).catch((error) => problem(error.message));
window.vitrail = { state, about, numbers, opened, waking, fitted, scene: () => scene }; // for those who open the console
