// Pixels of any size -> pixels of the model's size, by the arithmetic of `Preprocess.fitted` in data/preprocess.py, to the
// last bit: a browser's own canvas resizes otherwise, and a small model would notice.
//
// An image is { width, height, planes }: uint8, one plane of height x width for each channel, one after the other.

const ENLARGED = 2 ** 25; // pixels to which a crop may enlarge what is far from the model's proportions
const OVERSIZE = 4; // times the model's size, where that is more

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      x = Math.abs(x);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};

export function rounded(x) { // as Python rounds: halves go to the even number
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}

// For each place of the output: where its inputs begin, and their weights as integers of `bits` fractional bits.
function taps(from, to, filter, engine) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const narrow = 1 / wide; // multiplied by, as both libraries do: the last bit of a weight may hang on it
  const support = filter.support * wide;
  const rows = [];
  let most = 0;
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = [];
    let total = 0;
    for (let j = first; j < last; j++) {
      weights.push(filter.weight((j - centre + 0.5) * narrow));
      total += weights[weights.length - 1];
    }
    for (let j = 0; j < weights.length; j++) {
      if (total !== 0) weights[j] /= total;
      most = Math.max(most, weights[j]);
    }
    rows.push({ first, weights });
  }
  let bits = 22; // Pillow's; torch's weights are 16-bit numbers, as fine as the largest of them allows
  if (engine !== "pillow") for (bits = 0; bits < 22 && Math.trunc(0.5 + most * 2 ** (bits + 1)) < 2 ** 15; ) bits++;
  for (const row of rows) {
    row.weights = row.weights.map((w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * 2 ** bits));
  }
  return { rows, bits };
}

// One pass along a line of `from` values, `stride` apart, for each of `lines` lines.
function pass(source, target, { rows, bits }, stride, lineStart, targetStart, lines) {
  const half = 2 ** (bits - 1);
  const unit = 2 ** bits;
  for (let line = 0; line < lines; line++) {
    const read = lineStart(line);
    const write = targetStart(line);
    for (let i = 0; i < rows.length; i++) {
      const { first, weights } = rows[i];
      let sum = half;
      for (let j = 0, at = read + first * stride; j < weights.length; j++, at += stride) sum += source[at] * weights[j];
      const value = Math.floor(sum / unit);
      target[write + i * stride] = value < 0 ? 0 : value > 255 ? 255 : value;
    }
  }
}

// Rows first, except where Pillow begins with the columns: when the height shrinks by more than twice what the width does
// (of Pillow 13, found by comparing).
export function resized(image, height, width, { interpolation, engine }) {
  const filter = FILTERS[interpolation];
  const tall = image.height - height;
  const steps = [(it) => across(it, width, filter, engine), (it) => down(it, height, filter, engine)];
  if (engine === "pillow" && tall > 0 && tall > 2 * (image.width - width)) steps.reverse();
  return steps.reduce((it, step) => step(it), image);
}

function across(image, width, filter, engine) {
  if (image.width === width) return image;
  const lines = image.planes.length / image.width; // of all channels
  const planes = new Uint8Array(lines * width);
  const rows = taps(image.width, width, filter, engine);
  pass(image.planes, planes, rows, 1, (line) => line * image.width, (line) => line * width, lines);
  return { width, height: image.height, planes };
}

function down(image, height, filter, engine) {
  if (image.height === height) return image;
  const { width } = image;
  const lines = image.planes.length / image.height;
  const planes = new Uint8Array(lines * height);
  const rows = taps(image.height, height, filter, engine);
  const start = (tall) => (line) => Math.floor(line / width) * tall * width + (line % width);
  pass(image.planes, planes, rows, width, start(image.height), start(height), lines);
  return { width, height, planes };
}

function padded(image, height, width, mean) {
  const size = image.width * image.height;
  const planes = new Uint8Array(mean.length * height * width);
  const top = Math.floor((height - image.height) / 2);
  const left = Math.floor((width - image.width) / 2);
  mean.forEach((m, c) => {
    planes.fill(Math.min(Math.max(rounded(255 * m), 0), 255), c * height * width, (c + 1) * height * width);
    for (let y = 0; y < image.height; y++) {
      const row = image.planes.subarray(c * size + y * image.width, c * size + (y + 1) * image.width);
      planes.set(row, c * height * width + (top + y) * width + left);
    }
  });
  return { width, height, planes };
}

function middle(image, height, width, engine) {
  const place = engine === "transformers" ? (spare) => Math.floor(spare / 2) : (spare) => rounded(spare / 2);
  const top = place(image.height - height);
  const left = place(image.width - width);
  const channels = image.planes.length / (image.width * image.height);
  const planes = new Uint8Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const at = (c * image.height + top + y) * image.width + left;
      planes.set(image.planes.subarray(at, at + width), (c * height + y) * width);
    }
  }
  return { width, height, planes };
}

export function fitted(image, preprocess) {
  const [height, width] = preprocess.image_size;
  const { width: w, height: h } = image;
  if (Math.min(w, h) < preprocess.min_size) {
    throw new Error(`${w}x${h} pixels are fewer than a patch of ${preprocess.min_size}`);
  }
  if (preprocess.fit === "pad") {
    const scale = Math.min(height / h, width / w);
    const inner = (side, most) => Math.min(most, Math.max(1, rounded(side * scale)));
    return padded(resized(image, inner(h, height), inner(w, width), preprocess), height, width, preprocess.mean);
  }
  let tall = rounded(height / preprocess.crop_fraction);
  let wide = rounded(width / preprocess.crop_fraction);
  if (preprocess.fit === "crop") {
    if (h * wide <= w * tall) wide = Math.max(wide, Math.floor((tall * w) / h));
    else tall = Math.max(tall, Math.floor((wide * h) / w));
    if (tall * wide > Math.max(h * w, ENLARGED, OVERSIZE * height * width)) {
      throw new Error(`${w}x${h} pixels are too thin: a crop would enlarge them to ${wide}x${tall}`);
    }
  }
  return middle(resized(image, tall, wide, preprocess), height, width, preprocess.engine);
}
