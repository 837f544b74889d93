// Keeping and sending: a picture, the numbers, a link.

import { hashNow } from "./address.js";
import { AGAINST, cividis, css, FOR, jewel, limits } from "./colours.js";
import { numbers, shownMap } from "./facts.js";
import { download, safeName, wrapped } from "./share.js";
import { $, about, asked, CARRIED, classes, fileName, grid, hiddenNow, made, patches, predicted, probabilities, scene, state } from "./state.js";
import { drawWindow, layout } from "./window.js";
import { percent, ranked, short } from "./words.js";

export function savePicture() {
  const [width, window_] = [1000, 460];
  const frame = layout(window_, grid);
  const height = Math.round(Math.max(frame.height + 160, 640));
  const canvas = made("canvas", { width: width * 2, height: height * 2 });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = "#17141f";
  context.fillRect(0, 0, width, height);
  const { map, signed, said, unit } = shownMap();
  const hidden = state.view === "evidence" ? hiddenNow() : null;
  const probability = hidden && scene.left ? scene.left.named : probabilities()[asked()];
  context.save();
  context.translate(40, 70);
  drawWindow(context, frame, grid, { image: scene.image, map, signed, hidden, asked: jewel(asked()), probability, patch: state.patch, pinned: state.pinned, veil: state.veil / 100 });
  context.restore();
  const text = (words, x, y, font, colour = "#f3eff8", most = 400) => {
    context.font = font;
    context.fillStyle = colour;
    for (const line of wrapped(context, words, most)) context.fillText(line, x, y), (y += parseInt(font.match(/(\d+)px/)[1], 10) * 1.4);
    return y;
  };
  const right = 560;
  text(about.name, 40, 44, "600 20px Georgia, serif");
  let y = text(`${classes[predicted()]} ${percent(probabilities()[predicted()])}`, right, 110, "600 34px Georgia, serif") + 4;
  for (const label of ranked(scene.logits).slice(0, 5)) {
    text(classes[label], right, y, "15px system-ui, sans-serif", "#f3eff8", 400);
    text(percent(probabilities()[label], 1), right + 340, y, "15px system-ui, sans-serif", "#bcb5cb", 90);
    context.fillStyle = "#0b0a10";
    context.fillRect(right, y + 7, 400, 8);
    context.fillStyle = jewel(label);
    context.fillRect(right, y + 7, 400 * probabilities()[label], 8);
    y += 42;
  }
  if (map) {
    const [low, high] = limits(map, signed);
    const ramp = context.createLinearGradient(right, 0, right + 400, 0);
    for (const v of [0, 0.25, 0.5, 0.75, 1]) ramp.addColorStop(v, signed ? [css(AGAINST), "#6a76ad", "#8a8794", "#b8744a", css(FOR)][v * 4] : css(cividis(v)));
    y += 10;
    context.fillStyle = ramp;
    context.fillRect(right, y, 400, 10);
    text(short(low), right, y + 28, "13px system-ui, sans-serif", "#bcb5cb");
    text(short(high), right + 360, y + 28, "13px system-ui, sans-serif", "#bcb5cb");
    text(unit, right + 110, y + 28, "13px system-ui, sans-serif", "#bcb5cb");
    y += 58;
  }
  y = text(said, right, y, "15px system-ui, sans-serif", "#f3eff8");
  if (hidden && scene.left) text(`With ${hidden.size} of ${patches} patches hidden ${classes[asked()]} keeps ${percent(scene.left.named)}; with random ones ${percent(scene.left.chance.reduce((a, b) => a + b, 0) / scene.left.chance.length)}.`, right, y + 8, "15px system-ui, sans-serif", "#ffb454");
  text("vitrail", width - 90, height - 24, "italic 15px Georgia, serif", "#bcb5cb");
  canvas.toBlob((blob) => download(blob, `${stem()}.png`), "image/png");
}

const stem = () => safeName([fileName().replace(/\.\w+$/, ""), shownMap().method || about.method, classes[asked()]].join("."));

export function saveNumbers() {
  download(new Blob([`${JSON.stringify(numbers(), null, 1)}\n`], { type: "application/json" }), `${stem()}.json`);
}

export async function copyLink() {
  const address = location.href.split("#")[0] + hashNow(true);
  const lost = state.image === "own" && scene.image.planes.length > CARRIED;
  try {
    await navigator.clipboard.writeText(address);
    $("copied").textContent = lost ? "Copied, without your image: it is too large for a link." : "Copied.";
  } catch {
    $("copied").textContent = "The browser does not let this page copy; the address bar has the link.";
    if (!lost) history.replaceState(null, "", hashNow(true));
  }
}
