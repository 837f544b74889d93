// The prediction, the five most probable classes, and the choice of the explained class.

import { classColor } from "../colors.js";
import { byId, element } from "../dom.js";
import { info } from "../info.js";
import { rank } from "../math.js";
import { className, comparedLabel, explainedLabel, probabilities } from "../selectors.js";
import { percent } from "../text.js";

export function buildClasses() {
  const makeOptions = () => info.classes.map((name, i) => element("option", { value: String(i), textContent: name }));
  byId("label").append(...makeOptions());
  byId("against").append(element("option", { value: "", textContent: "all others" }), ...makeOptions());
}

export function renderClasses(state) {
  const { logits, truth } = state.image;
  const classProbabilities = probabilities(logits);
  const order = rank(logits).slice(0, 5);
  const best = order[0];
  const confidence = element("span", { className: "confidence", textContent: ` ${percent(classProbabilities[best])}` });
  byId("prediction").replaceChildren(className(best), confidence);
  byId("truth").textContent = describeTruth(truth, className(best));
  const list = byId("top-classes");
  while (list.children.length > order.length) list.lastChild.remove();
  while (list.children.length < order.length) list.append(makeItem());
  order.forEach((label, i) => {
    const button = list.children[i].firstChild;
    button.dataset.label = label;
    button.setAttribute("aria-pressed", String(label === explainedLabel(state)));
    button.querySelector(".name").textContent = className(label);
    button.querySelector(".value").textContent = percent(classProbabilities[label], 1);
    const bar = button.querySelector("i");
    bar.style.setProperty("--fraction", classProbabilities[label]);
    bar.style.setProperty("--class-color", classColor(label));
  });
  renderChoice(state);
}

function renderChoice(state) {
  const label = String(explainedLabel(state));
  const against = comparedLabel(state);
  byId("label").value = label;
  byId("against").value = against === null ? "" : String(against);
  for (const option of byId("against").options) option.disabled = option.value === label;
}

function makeItem() {
  const bar = element("span", { className: "probability" }, element("i"));
  const [name, value] = ["name", "value"].map((className) => element("span", { className }));
  return element("li", {}, element("button", { type: "button" }, name, bar, value));
}

function describeTruth(truth, predicted) {
  if (!truth) return "";
  return truth === predicted ? "correct" : `labeled ${truth}`;
}
