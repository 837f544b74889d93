// What the numbers say: attention and lens of a place, the map that is shown, and words for it.

import { about, asked, classes, depth, fileName, grid, heads, hiddenNow, mapNow, patches, predicted, prefix, probabilities, rather, scene, state, tokens } from "./state.js";
import { gathered, percent, placeOf, ranked, short, summary } from "./words.js";

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
export function attentionOf(layer, head, patch, way) {
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

// What each patch would answer after a layer, as explanation/logit_lens.py: the asked logit less the mean of all.
export function lensOf(layer) {
  const [this_, that, count] = [asked(), rather(), classes.length];
  return Float32Array.from({ length: patches }, (_, p) => {
    const at = (layer * patches + p) * count;
    const row = scene.lens.subarray(at, at + count);
    if (that !== null) return row[this_] - row[that];
    return row[this_] - row.reduce((a, b) => a + b, 0) / count;
  });
}

const question = () => `evidence for ${classes[asked()]}${rather() === null ? "" : ` rather than ${classes[rather()]}`}`;

// What the window shows now: a map or none, whether it is signed, and words for it.
export function shownMap() {
  const probability = probabilities()[asked()];
  if (state.view === "attention") {
    if (!scene.attention) return { map: null, signed: false, said: "Attention comes with the model, which is waking up." };
    const { patches: map, prefix: rest } = attentionOf(state.layer, state.head, state.patch, state.way);
    return { map, signed: false, method: "attention", said: attentionSaid(map, rest), unit: "share of attention" };
  }
  if (state.view === "layers") {
    if (!scene.lens) return { map: null, signed: true, said: "The layers come with the model, which is waking up." };
    const map = lensOf(state.layer);
    const said = `Layer ${state.layer}: ${summary(question(), probability, "logit_lens", map, grid)}.`;
    return { map, signed: true, method: "logit_lens", said: said + valueSaid(map), unit: rather() === null ? "logit above the mean of all" : "difference of logits" };
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

export function numbers() {
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
