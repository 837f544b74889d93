// Which patches are hidden: by the map, and in random orders as a control.

export const RANDOM_ORDERS = 5;
export const CURVE_STEPS = 12;

// Random orders of the patches, the same for every image.
export function drawRandomOrders(patches) {
  let seed = 7;
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 4294967296;
  };
  return Array.from({ length: RANDOM_ORDERS }, () => {
    const order = Array.from({ length: patches }, (_, i) => i);
    for (let i = patches - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  });
}

// The number of patches that a fraction is; one patch always remains.
export const hiddenCount = (fraction, patches) => Math.min(Math.round(fraction * patches), patches - 1);

// The patches that remain if the first `count` of each order are hidden, sorted by index.
export const remainingPatches = (orders, count) => orders.map((order) => order.slice(count).sort((a, b) => a - b));

// The mean height of a curve over the hidden fractions, by the trapezoidal rule, as in explanation/measures.py. Steps
// differ in width where the number of patches is not a multiple of the number of steps.
export function areaUnderCurve(fractions, values) {
  let total = 0;
  for (let i = 1; i < values.length; i++) {
    total += ((values[i - 1] + values[i]) / 2) * (fractions[i] - fractions[i - 1]);
  }
  const width = fractions[fractions.length - 1] - fractions[0];
  return width ? total / width : values[0];
}
