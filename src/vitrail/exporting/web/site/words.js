// Numbers and maps in words: the sentences that `Explanation.summary` says in Python.

export const percent = (part, digits = 0) => `${(100 * part).toFixed(digits)}\u00a0%`;

export function softmax(logits, temperature = 1) {
  const scaled = Array.from(logits, (value) => value / temperature);
  const most = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - most));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}

export function ranked(values) {
  return Array.from(values, (value, i) => [value, i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(([, i]) => i);
}

// As numpy.array_split: the first parts are longer by one where the length does not divide.
function thirds(length) {
  const parts = [];
  let start = 0;
  for (let i = 0; i < 3; i++) {
    const size = Math.floor(length / 3) + (i < length % 3 ? 1 : 0);
    parts.push([start, start + size]);
    start += size;
  }
  return parts;
}

export function gathered(map, [h, w]) {
  const positive = Array.from(map, (value) => Math.max(value, 0));
  const total = positive.reduce((sum, value) => sum + value, 0);
  if (total === 0) return null;
  let few = 0;
  let share = 0;
  for (const value of [...positive].sort((a, b) => b - a)) {
    few++;
    share += value / total;
    if (share >= 0.5) break;
  }
  let best = { place: "", part: -1 };
  thirds(h).forEach(([top, bottom], i) => thirds(w).forEach(([left, right], j) => {
    let part = 0;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) part += positive[y * w + x];
    if (part / total > best.part) {
      best = { place: `${["upper", "middle", "lower"][i]} ${["left", "center", "right"][j]}`, part: part / total };
    }
  }));
  return { few, ...best };
}

export function summary(question, probability, method, map, grid) {
  const sure = probability === null ? "" : `${(100 * probability).toFixed(0)}%, `;
  const start = `${question} (${sure}${method}): `;
  const found = gathered(map, grid);
  if (!found) return `${start}nothing in the image`;
  const { few, place, part } = found;
  return `${start}half of it is in ${few} of ${grid[0] * grid[1]} patches, most in the ${place} (${(100 * part).toFixed(0)}%)`;
}

export const placeOf = (patch, [, w]) => `row ${Math.floor(patch / w)}, column ${patch % w}`;

export const short = (value) => (value === 0 ? "0" : value.toPrecision(2).replace(/(\.\d*?)0+(e|$)/, "$1$2").replace(/\.(e|$)/, "$1"));

export const shellWord = (text) => (/^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
