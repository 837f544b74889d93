// The row of images to choose from: the examples, and the own image in front of them.

import { byId, element } from "../dom.js";
import { pixelsToDataUrl } from "../image-files.js";
import { info } from "../info.js";

let shownOwnImage = null; // the own image that the gallery shows

export function buildGallery() {
  info.examples.forEach((example, i) => {
    const title = `Example ${i + 1}: ${example.truth?.join(", ") || example.name}`;
    byId("gallery").append(makeItem(String(i), example.image, title));
  });
}

export function renderGallery({ source, ownImage }) {
  const gallery = byId("gallery");
  if (ownImage !== shownOwnImage) {
    shownOwnImage = ownImage;
    gallery.querySelector('[data-source="own"]')?.parentElement.remove();
    gallery.prepend(makeItem("own", pixelsToDataUrl(ownImage.pixels), "Your image"));
  }
  for (const button of gallery.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.source === source));
  }
}

function makeItem(source, url, title) {
  const button = element("button", { type: "button", title }, element("img", { src: url, alt: title }));
  button.dataset.source = source;
  return element("li", {}, button);
}
