// The page: what is shown (`state`), what is known of the image (`scene`), and how the one is drawn from the other.

import { cividis, css, FOR, AGAINST, jewel, limits } from "./colours.js";
import { area, chances, drawCurves, hiddenCount, leftOf, orderOf, STEPS } from "./curves.js";
import { fitted } from "./fit.js";
import { readHash, writeHash } from "./hash.js";
import { openModel, Overtaken } from "./model.js";
import { pixelsOf, readExample, readFile } from "./read.js";
import { columnCommand, commands, download, safeName, wrapped } from "./share.js";
import { drawTile, drawWindow, layout, patchAt } from "./window.js";
import { gathered, percent, placeOf, ranked, short, softmax, summary } from "./words.js";

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const { grid, classes, prefix, depth, heads, temperature } = about;
const patches = grid[0] * grid[1];
const tokens = prefix + patches;
const shape = [about.channels, ...about.preprocess.image_size];
const CARRIED = 4096; // bytes of an own image that a link may carry
const VIEWS = ["evidence", "attention", "layers"];
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const state = {
  image: "0", view: "evidence", asked: null, rather: null, layer: depth - 1, head: -1, patch: null, pinned: false,
  way: "to", hide: 0, veil: 100,
};
let scene = null; // of the image that is shown: pixels, logits, maps; attention, lens and answers once the model has looked
let model = null;
let turn = 0; // counts images: what comes late for an earlier one is dropped

// ---- what the numbers say

const predicted = () => ranked(scene.logits)[0];
const asked = () => (state.asked === null ? predicted() : state.asked);
const rather = () => (state.rather === asked() ? null : state.rather);
const probabilities = (logits = scene.logits) => softmax(logits, temperature);
const mapKey = () => (rather() === null ? `${asked()}` : `${asked()}|${rather()}`);
const mapNow = () => scene.maps.get(mapKey()) || null;
const hiddenNow = () => {
  const map = mapNow();
  const count = hiddenCount(state.hide, patches);
  return map && count ? new Set(orderOf(map).slice(0, count)) : null;
};

// How much the answer takes from each token, as the pool reads them.
function readout() {
  const first = { cls: 1, "cls+dist": 2, "cls+mean": 1 }[about.pool] || 0;
  const row = new Float32Array(tokens);
  for (let t = 0; t < first; t++) row[t] = 1 / first;
  if (about.pool.includes("mean")) for (let t = prefix; t < tokens; t++) row[t] = 1 / patches;
  if (about.pool === "map") row.fill(1 / tokens);
  const total = row.reduce((a, b) => a + b, 0);
  return row.map((value) => value / total);
}

// Attention of a head (-1: their mean) in a layer: the row of a patch (null: of what is pooled), or its column.
function attentionOf(layer, head, patch, way) {
  const one = (h) => {
    const at = (layer * heads + h) * tokens * tokens;
    const found = new Float32Array(tokens);
    if (patch === null) {
      const weights = readout();
      for (let q = 0; q < tokens; q++) {
        if (weights[q]) for (let k = 0; k < tokens; k++) found[k] += weights[q] * scene.attention[at + q * tokens + k];
      }
    } else {
      const token = prefix + patch;
      for (let i = 0; i < tokens; i++) {
        found[i] = scene.attention[at + (way === "to" ? token * tokens + i : i * tokens + token)];
      }
    }
    return found;
  };
  const rows = head === -1 ? Array.from({ length: heads }, (_, h) => one(h)) : [one(head)];
  const mean = rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
  return { patches: mean.subarray(prefix), prefix: mean.subarray(0, prefix).reduce((a, b) => a + b, 0) };
}

// What each patch would answer after a layer, as explain/lens.py: the asked logit less the mean of all.
function lensOf(layer) {
  const [this_, that, count] = [asked(), rather(), classes.length];
  return Float32Array.from({ length: patches }, (_, p) => {
    const at = (layer * patches + p) * count;
    const row = scene.lens.subarray(at, at + count);
    if (that !== null) return row[this_] - row[that];
    return row[this_] - row.reduce((a, b) => a + b, 0) / count;
  });
}

const question = () => `what speaks for ${classes[asked()]}${rather() === null ? "" : ` rather than ${classes[rather()]}`}`;

// What the window shows now: a map or none, whether it is signed, and words for it.
function shownMap() {
  const probability = probabilities()[asked()];
  if (state.view === "attention") {
    if (!scene.attention) return { map: null, signed: false, said: "Attention comes with the model, which is waking up." };
    const { patches: map, prefix: rest } = attentionOf(state.layer, state.head, state.patch, state.way);
    return { map, signed: false, method: "attention", said: attentionSaid(map, rest), unit: "share of attention" };
  }
  if (state.view === "layers") {
    if (!scene.lens) return { map: null, signed: true, said: "The layers come with the model, which is waking up." };
    const map = lensOf(state.layer);
    const said = `Layer ${state.layer}: ${summary(question(), probability, "lens", map, grid)}.`;
    return { map, signed: true, method: "lens", said: said + valueSaid(map), unit: rather() === null ? "logit above the mean of all" : "difference of logits" };
  }
  const map = mapNow();
  if (!map) return { map: null, signed: true, said: "The map comes with the model, which is waking up." };
  const words = summary(question(), probability, about.method, map, grid);
  return { map, signed: true, method: about.method, said: capital(words) + "." + valueSaid(map), unit: "added to the log-odds", words };
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function valueSaid(map) {
  if (state.patch === null) return "";
  const value = map[state.patch];
  return ` ${capital(placeOf(state.patch, grid))}: ${value > 0 ? "+" : ""}${short(value)} ${value < 0 ? "against" : "for"} ${classes[asked()]}.`;
}

function attentionSaid(map, rest) {
  const where = `Layer ${state.layer}, ${state.head === -1 ? "mean of all heads" : `head ${state.head}`}: `;
  const found = gathered(map, grid);
  const most = ranked(map)[0];
  const spread = found ? `half of it ${state.way === "to" ? "goes to" : "comes from"} ${found.few} of ${patches} patches` : "";
  const others = prefix > 1 ? `${prefix} tokens that stand` : "token that stands";
  const beside = rest > 0.005 && state.way === "to" ? `; ${percent(rest)} goes to the ${others} for no patch` : "";
  if (state.patch === null) return `${where}what the answer reads, together; ${spread}, most in the ${found.place}${beside}. Point at a pane to ask it alone.`;
  const who = placeOf(state.patch, grid);
  const there = most === state.patch ? "itself" : placeOf(most, grid);
  if (state.way === "from") return `${where}${who} is attended to most by ${there}, with ${percent(map[most])} of its attention; ${spread}.`;
  const [y, x] = [Math.floor(state.patch / grid[1]), state.patch % grid[1]];
  let [far, sum] = [0, 0];
  map.forEach((value, p) => {
    far += value * Math.hypot(Math.floor(p / grid[1]) - y, (p % grid[1]) - x);
    sum += value;
  });
  return `${where}${who} attends most to ${there} (${percent(map[most])}); ${spread}, ${(far / sum).toFixed(1)} patches away on average${beside}.`;
}

// ---- drawing

let place = null;

function drawMain({ map, signed, said, unit }) {
  const canvas = $("canvas");
  const width = Math.min(canvas.parentElement.clientWidth || 440, 464);
  const sharp = window.devicePixelRatio || 1;
  place = layout(width, grid);
  if (canvas.width !== Math.round(width * sharp) || canvas.height !== Math.round(place.height * sharp)) {
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(place.height * sharp);
    canvas.style.aspectRatio = `${width} / ${place.height}`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  const hidden = state.view === "evidence" ? hiddenNow() : null;
  const left = hidden && scene.left ? scene.left.named : probabilities()[asked()];
  drawWindow(context, place, grid, {
    image: scene.image, map, signed, hidden, asked: jewel(asked()), probability: left, patch: state.patch,
    pinned: state.pinned, veil: state.veil / 100,
  });
  $("caption").textContent = said;
  drawScale(map, signed, unit);
}

function drawScale(map, signed, unit) {
  $("scale").style.visibility = map ? "visible" : "hidden";
  if (!map) return;
  const [low, high] = limits(map, signed);
  $("low").textContent = signed ? `−${short(high)}` : percent(low, 1);
  $("high").textContent = signed ? `+${short(high)}` : percent(high, 1);
  $("ramp").style.background = signed
    ? `linear-gradient(90deg, ${css(AGAINST)}, #8a8794 50%, ${css(FOR)})`
    : `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((v) => css(cividis(v))).join(", ")})`;
  const name = classes[asked()];
  const sides = rather() === null ? `← against ${name} · for ${name} →` : `← ${classes[rather()]} · ${name} →`;
  $("meaning").textContent = signed ? `${sides} (${unit})` : unit;
}

function drawAnswers() {
  const chances_ = probabilities();
  const order = ranked(scene.logits).slice(0, 5);
  const best = order[0];
  $("answer").replaceChildren(classes[best], made("span", { className: "sure", textContent: ` ${percent(chances_[best])}` }));
  $("truth").textContent = !scene.truth ? "" : scene.truth === classes[best] ? "as it is labelled" : `labelled ${scene.truth}`;
  const top = $("top");
  while (top.children.length > order.length) top.lastChild.remove();
  while (top.children.length < order.length) {
    const bar = made("span", { className: "glass" }, made("i"));
    const button = made("button", { type: "button" }, made("span", { className: "name" }), bar, made("span", { className: "value" }));
    button.onclick = () => ask(Number(button.dataset.label));
    top.append(made("li", {}, button));
  }
  order.forEach((label, i) => {
    const button = top.children[i].firstChild;
    button.dataset.label = label;
    button.setAttribute("aria-pressed", String(label === asked()));
    button.querySelector(".name").textContent = classes[label];
    button.querySelector(".value").textContent = percent(chances_[label], 1);
    const bar = button.querySelector("i");
    bar.style.setProperty("--part", chances_[label]);
    bar.style.setProperty("--jewel", jewel(label));
  });
  $("asked").value = String(asked());
  $("rather").value = rather() === null ? "" : String(rather());
  for (const option of $("rather").options) option.disabled = option.value === String(asked());
}

function drawEvidence() {
  const count = hiddenCount(state.hide, patches);
  $("hide").value = String(state.hide);
  $("hide-said").textContent = `${state.hide} %: ${count} of ${patches}`;
  $("hide").setAttribute("aria-valuetext", `${state.hide} per cent, ${count} of ${patches} patches`);
  const known = count === 0 ? { named: probabilities()[asked()], chance: [probabilities()[asked()]] } : scene.left;
  const mean = known ? known.chance.reduce((a, b) => a + b, 0) / known.chance.length : null;
  for (const [name, value] of [["named", known ? known.named : null], ["chance", mean]]) {
    $(`bar-${name}`).style.setProperty("--part", value === null ? 0 : value);
    $(`value-${name}`).textContent = value === null ? "–" : percent(value, 1);
  }
  const steps = scene.curves.get(mapKey());
  if (!steps || steps.length < 2) return $("curve").replaceChildren();
  drawCurves($("curve"), steps, count / patches, "var(--lit)");
  if (steps.length === STEPS + 1) {
    const [named, chance] = [area(steps.map((s) => s.named)), area(steps.map((s) => s.chance.reduce((a, b) => a + b, 0) / s.chance.length))];
    const verdict = named < chance - 0.02 ? "the answer does rest on what the map names"
      : named > chance + 0.02 ? "here the map names the wrong patches" : "here the map does no better than chance";
    $("curve-said").textContent = `Over all steps ${classes[asked()]} keeps ${percent(named)} without the patches named first, ${percent(chance)} without random ones: ${verdict}. Hidden patches are left out of the computation; nothing grey stands in for them.`;
  }
}

function drawAttention() {
  $("layer").value = String(state.layer);
  $("head").value = String(state.head);
  $("layer-said").textContent = `${state.layer} of 0–${depth - 1}`;
  $("head-said").textContent = state.head === -1 ? "mean of all" : `${state.head} of 0–${heads - 1}`;
  $("head").setAttribute("aria-valuetext", state.head === -1 ? "mean of all heads" : `head ${state.head}`);
  $("way-to").setAttribute("aria-pressed", String(state.way === "to"));
  $("way-from").setAttribute("aria-pressed", String(state.way === "from"));
  if (!scene.attention) return;
  for (let h = 0; h < heads; h++) {
    const button = $("heads").children[h].firstChild;
    button.setAttribute("aria-pressed", String(state.head === h));
    drawTile(button.firstChild, attentionOf(state.layer, h, state.patch, state.way).patches, grid, false, state.patch);
  }
  const other = state.way === "to" ? "from" : "to";
  $("other").hidden = $("other-said").hidden = state.patch === null;
  if (state.patch !== null) {
    $("other-said").textContent = other === "to" ? "Where this pane attends" : "Who attends to this pane";
    drawTile($("other"), attentionOf(state.layer, state.head, state.patch, other).patches, grid, false, state.patch);
  }
}

function drawLayers() {
  if (!scene.lens) return;
  const count = classes.length;
  for (let l = 0; l < depth; l++) {
    const button = $("strip").children[l].firstChild;
    button.setAttribute("aria-pressed", String(state.layer === l));
    drawTile(button.firstChild, lensOf(l), grid, true, state.patch);
    const answer = scene.answers.subarray(l * count, (l + 1) * count);
    const best = ranked(answer)[0];
    button.children[1].textContent = classes[best];
    button.children[2].textContent = `${percent(probabilities(answer)[best])} after layer ${l}`;
  }
}

const PANELS = { evidence: drawEvidence, attention: drawAttention, layers: drawLayers };

function drawShare({ method }) {
  const file = fileName();
  const view = {
    method: method || about.method, label: classes[asked()], against: rather() === null ? null : classes[rather()],
    layer: state.view === "evidence" ? null : state.layer,
    head: state.view === "attention" && state.head !== -1 ? state.head : null,
    query: state.view === "attention" && state.patch !== null ? [Math.floor(state.patch / grid[1]), state.patch % grid[1]] : null,
    patch: state.patch,
  };
  const lines = state.view === "attention" && state.way === "from" && state.patch !== null
    ? columnCommand(about, view, file) : commands(about, view, file);
  $("shell").textContent = lines.shell ? `$ ${lines.shell}` : "";
  $("python").textContent = lines.python;
}

const fileName = () => (scene && scene.name) || "image.png";

function hashNow(carry = false) {
  const image = carry && state.image === "own" && scene.image.planes.length <= CARRIED ? `px:${base64(scene.image.planes)}` : state.image;
  return writeHash({
    image: image === "own" ? null : image, view: state.view, class: state.asked === null ? null : classes[state.asked],
    rather: rather() === null ? null : classes[rather()],
    layer: state.view === "evidence" ? null : state.layer, head: state.view === "attention" && state.head !== -1 ? state.head : null,
    patch: state.pinned ? state.patch : null, way: state.view === "attention" && state.way === "from" ? "from" : null,
    hide: state.hide || null,
  });
}

let pending = 0;

function draw() {
  if (!scene) return;
  const shown = shownMap();
  drawMain(shown);
  drawAnswers();
  for (const view of VIEWS) {
    $(`tab-${view}`).setAttribute("aria-selected", String(view === state.view));
    $(`tab-${view}`).tabIndex = view === state.view ? 0 : -1;
    $(view).hidden = view !== state.view;
  }
  PANELS[state.view]();
  drawShare(shown);
  document.querySelectorAll("#gallery button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.image === state.image)));
  clearTimeout(pending); // browsers count how often the address changes
  pending = setTimeout(() => history.replaceState(null, "", hashNow()), 150);
}

const speak = (text) => { $("spoken").textContent = text; };
const problem = (text) => { $("problem").textContent = text; };

// ---- asking the model

async function quietly(promise) {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof Overtaken)) problem(`The model could not answer: ${error.message}`);
    return null;
  }
}

async function look() {
  const [now, own] = [turn, scene];
  const found = await quietly(model.look(own.image));
  if (!found || now !== turn) return;
  Object.assign(own, { logits: found.logits, attention: found.attention, lens: found.lens, answers: found.answers });
  $("status").textContent = `Answered in ${Math.round(found.milliseconds)} ms, in this page.`;
  draw();
  refresh();
}

// The map that is asked for, what is left of the answer, then the curves, each when the one before is there.
async function refresh() {
  if (!model || !scene.attention) return;
  const [now, own, key] = [turn, scene, mapKey()];
  const still = () => now === turn && key === mapKey();
  if (!own.maps.has(key) || own.guessed === key) {
    const target = new Float32Array(classes.length);
    target[asked()] = 1;
    if (rather() !== null) target[rather()] = -1;
    const found = await quietly(model.map(own.image, target));
    if (!found) return;
    own.maps.set(key, found.map);
    if (own.guessed === key) own.guessed = null;
    if (!still()) return;
    draw();
  }
  await measure();
  if (still()) await trace_(own, key, still);
}

async function leftAfter(own, key, count, options) {
  const label = Number(key.split("|")[0]);
  const sets = leftOf([orderOf(own.maps.get(key)), ...own.chances], count);
  const found = await quietly(model.keep(own.image, sets, options));
  if (!found) return null;
  const rows = sets.map((_, i) => probabilities(found.logits.subarray(i * classes.length, (i + 1) * classes.length))[label]);
  return { part: count / patches, named: rows[0], chance: rows.slice(1) };
}

async function measure() {
  const [now, own, key, hide] = [turn, scene, mapKey(), state.hide];
  const count = hiddenCount(hide, patches);
  if (!model || !own.maps.has(key) || !count) {
    own.left = null;
    return draw();
  }
  const found = await leftAfter(own, key, count, { lane: "keep" });
  if (!found || now !== turn || key !== mapKey() || hide !== state.hide) return;
  own.left = found;
  draw();
}

async function trace_(own, key, still) {
  if (own.curves.has(key) && own.curves.get(key).length > STEPS) return;
  const label = Number(key.split("|")[0]);
  const whole = probabilities(own.logits)[label];
  const steps = [{ part: 0, named: whole, chance: [whole] }];
  own.curves.set(key, steps);
  for (let step = 1; step <= STEPS; step++) {
    const count = Math.min(Math.round((step / STEPS) * patches), patches - 1);
    const found = await leftAfter(own, key, count, { rank: 5, lane: "curve" });
    if (!found || !still()) return void (steps.length <= STEPS && own.curves.delete(key));
    steps.push(found);
    if (state.view === "evidence") drawEvidence();
  }
}

// ---- what people do

function ask(label, against = state.rather) {
  state.asked = label;
  state.rather = against === label ? null : against;
  scene.left = null;
  draw();
  speak(shownMap().said);
  refresh();
}

function choosePatch(patch, pinned) {
  state.patch = patch;
  state.pinned = pinned;
  draw();
}

function setView(view, focus = false) {
  state.view = view;
  draw();
  if (focus) $(`tab-${view}`).focus();
}

function setLayer(layer) {
  state.layer = Math.min(Math.max(layer, 0), depth - 1);
  draw();
}

function setHead(head) {
  state.head = Math.min(Math.max(head, -1), heads - 1);
  draw();
}

function setHide(part) {
  state.hide = Math.min(Math.max(part, 0), 95);
  draw();
  measure();
}

function setVeil(part) {
  state.veil = part;
  $("veil").value = String(part);
  draw();
}

function show(next, image) {
  turn++;
  state.image = image;
  scene = { chances: chances(patches), curves: new Map(), maps: new Map(), attention: null, lens: null, answers: null, left: null, guessed: null, ...next };
  problem("");
}

async function showExample(number, keep = false) {
  const example = about.examples[number];
  if (!keep) Object.assign(state, { asked: null, rather: null, patch: null, pinned: false, hide: 0 });
  const image = await readExample(example.image, about.channels);
  show({ image, name: example.name, logits: Float32Array.from(example.logits), truth: example.truth }, String(number));
  scene.guessed = String(predicted());
  scene.maps.set(scene.guessed, Float32Array.from(example.map)); // Python's, until the model's own
  draw();
  if (model && model.awake) look();
}

async function showOwn(image, name) {
  try {
    const seen = fitted(image, about.preprocess);
    await (await waking).ready;
    const found = await quietly(model.look(seen));
    if (!found) return;
    Object.assign(state, { asked: null, rather: null, patch: null, pinned: false, hide: 0 });
    show({ image: seen, name, ...found }, "own");
    $("status").textContent = `Answered in ${Math.round(found.milliseconds)} ms, in this page.`;
    ownTile(seen);
    draw();
    speak(`${classes[predicted()]}, ${percent(probabilities()[predicted()])}`);
    refresh();
  } catch (error) {
    problem(error.message);
  }
}

async function takeFile(file) {
  if (!file) return;
  problem("");
  try {
    await showOwn(await readFile(file, about.channels), file.name || "image.png");
  } catch (error) {
    problem(error.message);
  }
}

// ---- the parts that are made once

function galleryTile(image, address, title) {
  const picture = made("img", { src: address, alt: title });
  const button = made("button", { type: "button", title }, picture);
  button.dataset.image = image;
  return made("li", {}, button);
}

function ownTile(image) {
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

function build() {
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

// ---- the camera

let stream = null;

async function openCamera() {
  problem("");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = stream;
    $("taking").showModal();
  } catch {
    problem("There is no camera here, or the browser does not let this page use it.");
  }
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
}

async function takePicture() {
  const video = $("video");
  if (!video.videoWidth) return;
  const image = pixelsOf(video, video.videoWidth, video.videoHeight, about.channels);
  $("taking").close();
  await showOwn(image, "camera.png");
}

// ---- keeping and sending

function savePicture() {
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

function numbers() {
  const { map, signed, method, said } = shownMap();
  const inside = state.view !== "evidence";
  const chances_ = probabilities();
  return {
    image: fileName(), model: about.name, label: classes[asked()], probability: chances_[asked()], predicted: classes[predicted()],
    against: rather() === null ? null : classes[rather()], method: method || null, layer: inside ? state.layer : null,
    head: state.view === "attention" && state.head !== -1 ? state.head : null,
    query: state.view === "attention" && state.patch !== null ? [Math.floor(state.patch / grid[1]), state.patch % grid[1]] : null,
    way: state.view === "attention" ? state.way : null, signed, summary: said,
    map: map ? Array.from({ length: grid[0] }, (_, y) => Array.from(map.slice(y * grid[1], (y + 1) * grid[1]))) : null,
    top: ranked(scene.logits).slice(0, 5).map((label) => ({ label: classes[label], probability: chances_[label] })),
    logits: Array.from(scene.logits),
    hidden: state.hide && scene.left ? { patches: [...(hiddenNow() || [])], probability: scene.left.named, at_random: scene.left.chance } : null,
    answers: scene.answers ? Array.from({ length: depth }, (_, l) => Array.from(scene.answers.slice(l * classes.length, (l + 1) * classes.length))) : null,
  };
}

function saveNumbers() {
  download(new Blob([`${JSON.stringify(numbers(), null, 1)}\n`], { type: "application/json" }), `${stem()}.json`);
}

const base64 = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

async function copyLink() {
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

// ---- opening

async function open(wanted) {
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
        const asked_ = { ...state };
        await showOwn({ width: shape[2], height: shape[1], planes }, "image.png");
        Object.assign(state, asked_, { image: "own" });
        draw();
        return refresh();
      }
    } catch {
      problem("The image in this link is damaged.");
    }
  }
  await showExample(number(wanted.image, 0, about.examples.length - 1, 0), true);
}

async function wake() {
  const start = performance.now();
  const payload = { graphs: {} };
  for (const name of ["runtime", "wasm", "weights"]) payload[name] = $(name).textContent;
  for (const name of ["look", "map", "keep"]) payload.graphs[name] = $(`graph-${name}`).textContent;
  try {
    model = openModel(shape, payload, $("worker").textContent);
    await model.ready;
    model.awake = true;
    for (const name of ["runtime", "wasm", "weights", "graph-look", "graph-map", "graph-keep"]) $(name).remove();
    $("status").textContent = `Awake after ${((performance.now() - start) / 1000).toFixed(1)} s.`;
    if (scene && !scene.attention) look();
  } catch (error) {
    $("status").textContent = "The model sleeps: only the examples’ answers and first maps can be seen.";
    problem(`The model cannot run in this browser: ${error.message}`);
  }
  return model;
}

const waking = new Promise((resolve) => addEventListener("DOMContentLoaded", () => resolve(wake())));
build();
listen();
const opened = open(readHash(location.hash)).catch((error) => problem(error.message));
window.vitrail = { state, about, numbers, opened, waking, fitted, scene: () => scene }; // for those who open the console
