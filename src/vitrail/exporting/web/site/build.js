// The parts that are made once, and the tiles of the gallery.

import { setHead, setLayer, showExample, showOwn } from "./act.js";
import { $, about, classes, depth, fileName, heads, made, state } from "./state.js";

function galleryTile(image, address, title) {
  const picture = made("img", { src: address, alt: title });
  const button = made("button", { type: "button", title }, picture);
  button.dataset.image = image;
  return made("li", {}, button);
}

export function ownTile(image) {
  document.querySelector('#gallery [data-image="own"]')?.parentElement.remove();
  const item = galleryTile("own", pictureOf(image), "Your image");
  item.firstChild.onclick = () => showOwn(image, fileName());
  $("gallery").prepend(item);
}

function pictureOf({ width, height, planes }) {
  const canvas = made("canvas", { width, height });
  const pixels = new ImageData(width, height);
  const size = width * height;
  for (let i = 0; i < size; i++) {
    const grey = planes.length === size;
    pixels.data.set([planes[i], planes[grey ? i : size + i], planes[grey ? i : 2 * size + i], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL("image/png");
}

export function build() {
  about.examples.forEach((example, i) => {
    const item = galleryTile(String(i), example.image, `Example ${i + 1}${example.truth ? `: ${example.truth}` : `: ${example.name}`}`);
    item.firstChild.onclick = () => showExample(i);
    $("gallery").append(item);
  });
  for (const [i, label] of classes.entries()) $("asked").append(made("option", { value: String(i), textContent: label }));
  $("rather").append(made("option", { value: "", textContent: "all others" }), ...classes.map((label, i) => made("option", { value: String(i), textContent: label })));
  for (let h = 0; h < heads; h++) {
    const button = made("button", { type: "button" }, made("canvas"), made("span", { textContent: `head ${h}` }));
    button.onclick = () => setHead(state.head === h ? -1 : h);
    $("heads").append(made("li", {}, button));
  }
  for (let l = 0; l < depth; l++) {
    const button = made("button", { type: "button" }, made("canvas"), made("b", { textContent: "…" }), made("span", { textContent: `after layer ${l}` }));
    button.onclick = () => setLayer(l);
    $("strip").append(made("li", {}, button));
  }
}
