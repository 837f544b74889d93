// Connects the document's events with the actions and the state with the views, then opens the view of the address.

import {
  choosePatch,
  openView,
  setDirection,
  setError,
  setHead,
  setHiddenPercent,
  setLabel,
  setLayer,
  setMapOpacity,
  setView,
  showExample,
  showFile,
  showOwnImage,
} from "./actions.js";
import { openCamera, stopCamera, takePicture } from "./camera.js";
import { byId } from "./dom.js";
import { fitImage } from "./fit.js";
import { getModel, modelReady } from "./inference.js";
import { info } from "./info.js";
import { handleKey } from "./keyboard.js";
import { viewNumbers } from "./numbers.js";
import { copyLink, saveNumbers, savePicture } from "./picture.js";
import { explainedLabel } from "./selectors.js";
import { getState, subscribe } from "./store.js";
import { parseHash, VIEWS } from "./url.js";
import { buildPage, renderPage } from "./views/page.js";
import { patchAtPointer } from "./views/viewer.js";

// Calls `action` with the dataset of a button that is clicked inside the element.
function onButton(id, action) {
  byId(id).onclick = (event) => {
    const button = event.target.closest("button");
    if (button) action(button.dataset);
  };
}

function onNumber(id, action) {
  byId(id).oninput = (event) => action(Number(event.target.value));
}

function listenToControls() {
  onButton("gallery", ({ source }) => {
    const { ownImage } = getState();
    if (source === "own") showOwnImage(ownImage.pixels, ownImage.name);
    else showExample(Number(source));
  });
  onButton("top-classes", ({ label }) => setLabel(Number(label)));
  onButton("heads", ({ head }) => setHead(getState().head === Number(head) ? -1 : Number(head)));
  onButton("layers-list", ({ layer }) => setLayer(Number(layer)));
  onNumber("hide", setHiddenPercent);
  onNumber("map-opacity", setMapOpacity);
  onNumber("layer", setLayer);
  onNumber("head", setHead);
  byId("label").onchange = (event) => setLabel(Number(event.target.value));
  byId("against").onchange = (event) =>
    setLabel(explainedLabel(getState()), event.target.value === "" ? null : Number(event.target.value));
  for (const direction of ["to", "from"]) byId(`direction-${direction}`).onclick = () => setDirection(direction);
  byId("png").onclick = savePicture;
  byId("json").onclick = saveNumbers;
  byId("link").onclick = copyLink;
}

function listenToTabs() {
  VIEWS.forEach((view, i) => {
    byId(`tab-${view}`).onclick = () => setView(view);
    byId(`tab-${view}`).onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: VIEWS.length - 1 }[event.key];
      if (!step) return;
      const next = VIEWS[(i + step) % VIEWS.length];
      setView(next);
      byId(`tab-${next}`).focus();
    };
  });
}

function listenToViewer() {
  const viewer = byId("viewer");
  viewer.onpointermove = (event) => {
    const { image, isPinned, patch } = getState();
    if (!image || isPinned || event.pointerType === "touch") return;
    const pointed = patchAtPointer(event);
    if (pointed !== patch) choosePatch(pointed, false);
  };
  viewer.onpointerleave = () => {
    if (getState().image && !getState().isPinned) choosePatch(null, false);
  };
  viewer.onclick = (event) => {
    const { image, isPinned, patch } = getState();
    if (!image) return;
    const pointed = patchAtPointer(event);
    choosePatch(pointed, pointed !== null && !(isPinned && patch === pointed));
  };
  viewer.onkeydown = handleKey;
}

function listenToFiles() {
  byId("file").onchange = (event) => {
    showFile(event.target.files[0]);
    event.target.value = "";
  };
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    showFile(files.find((file) => file.type.startsWith("image/")));
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    showFile(event.dataTransfer.files[0]);
  });
  byId("camera").onclick = openCamera;
  byId("take-picture").onclick = takePicture;
  byId("close-camera").onclick = () => byId("camera-dialog").close();
  byId("camera-dialog").onclose = stopCamera;
}

const openAddress = () => openView(parseHash(location.hash, info));

buildPage();
listenToControls();
listenToTabs();
listenToViewer();
listenToFiles();
subscribe(renderPage);
renderPage(getState());
addEventListener("resize", () => renderPage(getState()));
addEventListener("hashchange", openAddress);
const opened = openAddress().catch((error) => setError(error.message));

// For the browser's console, and for tests.
window.vitrail = { getState, info, numbers: () => viewNumbers(getState()), opened, modelReady, getModel, fitImage };
