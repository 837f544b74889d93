// Saves the view as a picture or as numbers, and copies a link to it.

import { AGAINST, cividis, classColor, colorLimits, FOR, toCss } from "./colors.js";
import { byId, element } from "./dom.js";
import { drawFrame, layoutFrame } from "./drawing.js";
import { info, patchCount } from "./info.js";
import { mean } from "./math.js";
import { viewNumbers } from "./numbers.js";
import {
  className,
  describeAnswer,
  explainedLabel,
  fileName,
  formatAddress,
  isOwnImageTooLarge,
  listedLabels,
  probabilities,
} from "./selectors.js";
import { getState } from "./store.js";
import { percent, shortNumber } from "./text.js";
import { frameContent, viewMap } from "./view-map.js";

const [WIDTH, FRAME_WIDTH, COLUMN, COLUMN_WIDTH] = [1000, 460, 560, 400];
const [INK, SOFT, ACCENT] = ["#f3eff8", "#bcb5cb", "#ffb454"];
const [SANS, SANS_SMALL] = ["15px system-ui, sans-serif", "13px system-ui, sans-serif"];

export function savePicture() {
  const state = getState();
  const frame = layoutFrame(FRAME_WIDTH, info.grid);
  const height = Math.round(Math.max(frame.height + 160, 640));
  const canvas = element("canvas", { width: WIDTH * 2, height: height * 2 });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = "#17141f";
  context.fillRect(0, 0, WIDTH, height);
  context.save();
  context.translate(40, 70);
  drawFrame(context, frame, frameContent(state));
  context.restore();
  writeText(context, info.name, 40, 44, "600 20px Georgia, serif");
  let y = writeClasses(context, state, 110);
  const { map, isSigned, caption, unit } = viewMap(state);
  if (map) y = drawScale(context, map, isSigned, unit, y + 10);
  y = writeText(context, caption, COLUMN, y, SANS);
  if (state.view === "evidence" && state.hiddenPercent && state.image.remaining) {
    writeText(context, describeHidden(state), COLUMN, y + 8, SANS, ACCENT);
  }
  writeText(context, "vitrail", WIDTH - 90, height - 24, "italic 15px Georgia, serif", SOFT);
  canvas.toBlob((blob) => download(blob, `${fileStem(state)}.png`), "image/png");
}

export function saveNumbers() {
  const text = `${JSON.stringify(viewNumbers(getState()), null, 1)}\n`;
  download(new Blob([text], { type: "application/json" }), `${fileStem(getState())}.json`);
}

export async function copyLink() {
  const state = getState();
  const address = formatAddress(state, true);
  const isIncomplete = isOwnImageTooLarge(state);
  try {
    await navigator.clipboard.writeText(location.href.split("#")[0] + address);
    byId("copied").textContent = isIncomplete ? "Copied, without your image: it is too large for a link." : "Copied.";
  } catch {
    byId("copied").textContent = "The browser does not allow this page to copy; the address bar has the link.";
    if (!isIncomplete) history.replaceState(null, "", address);
  }
}

// The answer and the listed classes, with bars. Returns the y below them.
function writeClasses(context, state, top) {
  const classProbabilities = probabilities(state.image.logits);
  let y = writeText(context, describeAnswer(state), COLUMN, top, "600 34px Georgia, serif") + 4;
  for (const label of listedLabels(state)) {
    writeText(context, className(label), COLUMN, y, SANS);
    writeText(context, percent(classProbabilities[label], 1), COLUMN + 340, y, SANS, SOFT);
    context.fillStyle = "#0b0a10";
    context.fillRect(COLUMN, y + 7, COLUMN_WIDTH, 8);
    context.fillStyle = classColor(label);
    context.fillRect(COLUMN, y + 7, COLUMN_WIDTH * classProbabilities[label], 8);
    y += 42;
  }
  return y;
}

// The color scale of the map. Returns the y below it.
function drawScale(context, map, isSigned, unit, y) {
  const [low, high] = colorLimits(map, isSigned);
  const ramp = context.createLinearGradient(COLUMN, 0, COLUMN + COLUMN_WIDTH, 0);
  const signedColors = [toCss(AGAINST), "#6a76ad", "#8a8794", "#b8744a", toCss(FOR)];
  [0, 0.25, 0.5, 0.75, 1].forEach((position, i) => {
    ramp.addColorStop(position, isSigned ? signedColors[i] : toCss(cividis(position)));
  });
  context.fillStyle = ramp;
  context.fillRect(COLUMN, y, COLUMN_WIDTH, 10);
  writeText(context, shortNumber(low), COLUMN, y + 28, SANS_SMALL, SOFT);
  writeText(context, shortNumber(high), COLUMN + 360, y + 28, SANS_SMALL, SOFT);
  writeText(context, unit, COLUMN + 110, y + 28, SANS_SMALL, SOFT);
  return y + 58;
}

function describeHidden(state) {
  const { byMap, atRandom } = state.image.remaining;
  const count = Math.min(Math.round((state.hiddenPercent / 100) * patchCount), patchCount - 1);
  const name = className(explainedLabel(state));
  return (
    `With ${count} of ${patchCount} patches hidden, ${name} has ${percent(byMap)}; ` +
    `with random patches hidden, ${percent(mean(atRandom))}.`
  );
}

// Writes text in lines of the column's width. Returns the y below them.
function writeText(context, text, x, y, font, color = INK) {
  context.font = font;
  context.fillStyle = color;
  const lineHeight = parseInt(font.match(/(\d+)px/)[1], 10) * 1.4;
  for (const line of wrapText(context, text, COLUMN_WIDTH)) {
    context.fillText(line, x, y);
    y += lineHeight;
  }
  return y;
}

function wrapText(context, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const last = lines[lines.length - 1];
    const longer = `${last} ${word}`.trim();
    if (last && context.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

function fileStem(state) {
  const method = viewMap(state).method || info.method;
  const parts = [fileName(state).replace(/\.\w+$/, ""), method, className(explainedLabel(state))];
  return parts
    .join(".")
    .replace(/[^\w.+=@ -]/g, "_")
    .slice(0, 80);
}

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
