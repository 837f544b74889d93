// The commands that make the view again: for a terminal and for Python.

import { quoteForShell } from "./text.js";

// `view` has the options of `vitrail explain`: method, label, against, layer, head, query.
export function explainCommands(info, view, file) {
  const shell = ["vitrail", "explain", info.model, file];
  const python = [JSON.stringify(file)];
  if (view.method !== info.method) {
    shell.push("--method", view.method);
    python.push(`method=${JSON.stringify(view.method)}`);
  }
  if (view.method !== "attention") {
    shell.push("--class", view.label);
    if (view.against !== null) shell.push("--against", view.against);
    const names = [view.label, view.against].filter((name) => name !== null).map((name) => JSON.stringify(name));
    python.push(`target=${names.length > 1 ? `(${names.join(", ")})` : names[0]}`);
  }
  for (const option of ["layer", "head", "query"]) {
    const value = view[option];
    if (value === null) continue;
    shell.push(option === "head" ? "--attention-head" : `--${option}`, String(value));
    python.push(`${option}=${Array.isArray(value) ? `(${value.join(", ")})` : value}`);
  }
  return {
    shell: shell.map((word) => quoteForShell(String(word))).join(" "),
    python: `vitrail.explain(vitrail.load(${JSON.stringify(info.model)}), ${python.join(", ")})`,
  };
}

// The attention that a patch receives is a column of the matrix, which only Python gives.
export function columnCommands(info, view, patch, file) {
  const head = view.head === null ? "[0].mean(0)" : `[0, ${view.head}]`;
  const lines = [
    `clf = vitrail.load(${JSON.stringify(info.model)})`,
    "with vitrail.recording(clf.vit) as record:",
    `    clf.logits(clf.read_image(${JSON.stringify(file)}).unsqueeze(0))`,
    `print(record.attention(${view.layer})${head}[${info.prefix}:, ${info.prefix + patch}])`,
  ];
  return { shell: "", python: lines.join("\n") };
}
