// Functions of lists of numbers.

export const sum = (values) => values.reduce((total, value) => total + value, 0);

export const mean = (values) => sum(values) / values.length;

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export function softmax(logits, temperature = 1) {
  const scaled = Array.from(logits, (value) => value / temperature);
  const largest = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - largest));
  const total = sum(powers);
  return powers.map((value) => value / total);
}

export const sigmoid = (logits, temperature = 1) =>
  Array.from(logits, (value) => 1 / (1 + Math.exp(-value / temperature)));

// Indices by value, largest first.
export function rank(values) {
  return Array.from(values, (value, i) => [value, i])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .map(([, i]) => i);
}

// Like numpy.percentile: linear between neighbors.
export function percentile(values, q) {
  const sorted = Array.from(values).sort((a, b) => a - b);
  const position = (q / 100) * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

// Like numpy.array_split into three: the first parts are longer by one if the length does not divide.
export function splitInThirds(length) {
  const parts = [];
  let start = 0;
  for (let i = 0; i < 3; i++) {
    const size = Math.floor(length / 3) + (i < length % 3 ? 1 : 0);
    parts.push([start, start + size]);
    start += size;
  }
  return parts;
}
