// How the state and the scene are drawn.

import { hashNow } from "./address.js";
import { AGAINST, cividis, css, FOR, jewel, limits } from "./colours.js";
import { area, drawCurves, hiddenCount, STEPS } from "./curves.js";
import { ask } from "./act.js";
import { attentionOf, lensOf, shownMap } from "./facts.js";
import { columnCommand, commands } from "./share.js";
import { $, about, asked, classes, depth, fileName, grid, heads, hiddenNow, made, mapKey, patches, probabilities, rather, scene, state, VIEWS } from "./state.js";
import { drawTile, drawWindow, layout } from "./window.js";
import { percent, ranked, short } from "./words.js";

export let place = null;

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

export function drawEvidence() {
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

let pending = 0;

export function draw() {
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

export const speak = (text) => { $("spoken").textContent = text; };
export const problem = (text) => { $("problem").textContent = text; };
