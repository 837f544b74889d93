// What is shown, in the address: a link opens the same view.

const KEYS = ["image", "view", "class", "rather", "layer", "head", "patch", "way", "hide"];

export function readHash(text) {
  const found = new URLSearchParams(text.replace(/^#/, ""));
  return Object.fromEntries(KEYS.filter((key) => found.has(key)).map((key) => [key, found.get(key)]));
}

export function writeHash(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${new URLSearchParams(kept)}`;
}
