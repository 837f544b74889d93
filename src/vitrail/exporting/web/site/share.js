// The view as something to keep or send: a picture, its numbers, and the lines that make it again in a terminal.

import { shellWord } from "./words.js";

// `view`: what is shown, in the words of the command line.
export function commands(about, view, file) {
  const words = ["vitrail", "explain", about.model, file];
  const python = [];
  if (view.method !== about.method) words.push("--method", view.method), python.push(`method=${JSON.stringify(view.method)}`);
  if (view.method !== "attention") {
    words.push("--class", view.label);
    if (view.against !== null) words.push("--against", view.against);
    const names = [view.label, view.against].filter((name) => name !== null).map((name) => JSON.stringify(name));
    python.push(`target=${names.length > 1 ? `(${names.join(", ")})` : names[0]}`);
  }
  for (const [key, value] of [["layer", view.layer], ["head", view.head], ["query", view.query]]) {
    if (value === null) continue;
    words.push(key === "head" ? "--attention-head" : `--${key}`, String(value));
    python.push(`${key}=${Array.isArray(value) ? `(${value.join(", ")})` : value}`);
  }
  const line = `vitrail.load(${JSON.stringify(about.model)})`;
  return {
    shell: words.map((word) => shellWord(String(word))).join(" "),
    python: `vitrail.explain(${[line, JSON.stringify(file), ...python].join(", ")})`,
  };
}

// Who attends to a patch is a column of the matrix, which only Python gives.
export function columnCommand(about, view, file) {
  const head = view.head === null ? "[0].mean(0)" : `[0, ${view.head}]`;
  return {
    shell: "",
    python: `clf = vitrail.load(${JSON.stringify(about.model)})\n` +
      `with vitrail.recording(clf.vit) as record:\n    clf.logits(clf.read(${JSON.stringify(file)}).unsqueeze(0))\n` +
      `print(record.attention(${view.layer})${head}[${about.prefix}:, ${about.prefix + view.patch}])`,
  };
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const safeName = (text) => text.replace(/[^\w.+=@ -]/g, "_").slice(0, 80);

// Lines of at most `most` pixels.
export function wrapped(context, text, most) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (context.measureText(longer).width > most && lines[lines.length - 1]) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
