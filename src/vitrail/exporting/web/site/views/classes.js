// The prediction, the listed classes or labels, and the choice of the explained one.

import { classColor } from "../colors.js";
import { byId, element } from "../dom.js";
import { hasLabels, info } from "../info.js";
import {
  className,
  comparedLabel,
  explainedLabel,
  listedLabels,
  predictedLabels,
  probabilities,
} from "../selectors.js";
import { NO_LABEL, percent } from "../text.js";

export function buildClasses() {
  const makeOptions = () => info.classes.map((name, i) => element("option", { value: String(i), textContent: name }));
  byId("label").append(...makeOptions());
  byId("against").append(
    element("option", { value: "", textContent: hasLabels ? "its absence" : "all others" }),
    ...makeOptions(),
  );
}

export function renderClasses(state) {
  const { logits, truth } = state.image;
  const classProbabilities = probabilities(logits);
  const order = listedLabels(state);
  const predicted = predictedLabels(state);
  byId("prediction").replaceChildren(...makeHeading(predicted, classProbabilities));
  byId("truth").textContent = describeTruth(truth, predicted.map(className));
  const list = byId("top-classes");
  while (list.children.length > order.length) list.lastChild.remove();
  while (list.children.length < order.length) list.append(makeItem());
  order.forEach((label, i) => {
    const button = list.children[i].firstChild;
    button.dataset.label = label;
    button.dataset.predicted = String(predicted.includes(label));
    button.setAttribute("aria-pressed", String(label === explainedLabel(state)));
    button.querySelector(".name").textContent = className(label);
    button.querySelector(".value").textContent = percent(classProbabilities[label], 1);
    const bar = button.querySelector("i");
    bar.style.setProperty("--fraction", classProbabilities[label]);
    bar.style.setProperty("--class-color", classColor(label));
    if (hasLabels) renderThreshold(button, info.thresholds[label]);
  });
  renderChoice(state);
}

// Each predicted class or label with its probability.
function makeHeading(predicted, classProbabilities) {
  if (!predicted.length) return [NO_LABEL];
  return predicted.flatMap((label, i) => [
    i ? ", " : "",
    className(label),
    element("span", { className: "confidence", textContent: ` ${percent(classProbabilities[label])}` }),
  ]);
}

// A line in the bar, from which on the label is predicted.
function renderThreshold(button, threshold) {
  button.title = `threshold ${percent(threshold, 1)}`;
  const bar = button.querySelector(".probability");
  if (!bar.querySelector("b")) bar.append(element("b"));
  bar.style.setProperty("--threshold", threshold);
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
  const isCorrect = truth.length === predicted.length && truth.every((name) => predicted.includes(name));
  if (isCorrect) return "correct";
  return truth.length ? `labeled ${truth.join(", ")}` : "has no label";
}
