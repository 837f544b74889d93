// Pixels of any size -> pixels of the model's size, with the arithmetic of `Preprocess.fit_image` in
// data/preprocess.py, to the last bit. The canvas of a browser resizes differently, and small models are sensitive to
// that.
//
// An image is { width, height, planes }: uint8, one plane of height x width after the other for each channel. One
// of the model's size has `isFitted`, and `photo` if it is known: { top, left, height, width } of what is not padding.

const MAX_ENLARGED_PIXELS = 2 ** 25; // limit of the pixels that a crop may compute for a thin image,
const MAX_OVERSIZE = 4; // or this many times the model's size, if that is more

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

// Rounds as Python does: halves go to the even number.
export function roundHalfToEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}

// For each output position: the first input, and the weights of the inputs as integers with `bits` fractional bits.
function filterRows(from, to, filter, engine) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const inverse = 1 / stretch; // both libraries multiply by it: a division could change the last bit of a weight
  const support = filter.support * stretch;
  const rows = [];
  let largest = 0;
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const weights = [];
    let total = 0;
    for (let j = first; j < last; j++) {
      weights.push(filter.weight((j - center + 0.5) * inverse));
      total += weights[weights.length - 1];
    }
    for (let j = 0; j < weights.length; j++) {
      if (total !== 0) weights[j] /= total;
      largest = Math.max(largest, weights[j]);
    }
    rows.push({ first, weights });
  }
  let bits = 22; // Pillow's; torch has 16-bit weights, with as many fractional bits as the largest weight allows
  if (engine !== "pillow") {
    for (bits = 0; bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15; ) bits++;
  }
  for (const row of rows) {
    row.weights = row.weights.map((w) => Math.trunc((w < 0 ? -0.5 : 0.5) + w * 2 ** bits));
  }
  return { rows, bits };
}

// Filters along `lines` lines of values that are `stride` apart.
function filterLines(source, target, { rows, bits }, stride, lineStart, targetStart, lines) {
  const half = 2 ** (bits - 1);
  const unit = 2 ** bits;
  for (let line = 0; line < lines; line++) {
    const sourceStart = lineStart(line);
    const outputStart = targetStart(line);
    for (let i = 0; i < rows.length; i++) {
      const { first, weights } = rows[i];
      let sum = half;
      const start = sourceStart + first * stride;
      for (let j = 0; j < weights.length; j++) sum += source[start + j * stride] * weights[j];
      const value = Math.floor(sum / unit);
      target[outputStart + i * stride] = value < 0 ? 0 : value > 255 ? 255 : value;
    }
  }
}

// Rows first. Pillow 13 starts with the columns if the height shrinks by more than twice as much as the width; this was
// found by comparison.
function resize(image, height, width, { interpolation, engine }) {
  const filter = FILTERS[interpolation];
  const steps = [
    (input) => resizeWidth(input, width, filter, engine),
    (input) => resizeHeight(input, height, filter, engine),
  ];
  const shrinkage = image.height - height;
  if (engine === "pillow" && shrinkage > 0 && shrinkage > 2 * (image.width - width)) steps.reverse();
  return steps.reduce((input, step) => step(input), image);
}

function resizeWidth(image, width, filter, engine) {
  if (image.width === width) return image;
  const lines = image.planes.length / image.width; // of all channels
  const planes = new Uint8Array(lines * width);
  const rows = filterRows(image.width, width, filter, engine);
  filterLines(
    image.planes,
    planes,
    rows,
    1,
    (line) => line * image.width,
    (line) => line * width,
    lines,
  );
  return { width, height: image.height, planes };
}

function resizeHeight(image, height, filter, engine) {
  if (image.height === height) return image;
  const { width } = image;
  const lines = image.planes.length / image.height;
  const planes = new Uint8Array(lines * height);
  const rows = filterRows(image.height, height, filter, engine);
  const start = (rowCount) => (line) => Math.floor(line / width) * rowCount * width + (line % width);
  filterLines(image.planes, planes, rows, width, start(image.height), start(height), lines);
  return { width, height, planes };
}

function pad(image, { top, left }, height, width, mean) {
  const size = image.width * image.height;
  const planes = new Uint8Array(mean.length * height * width);
  mean.forEach((m, c) => {
    planes.fill(Math.min(Math.max(roundHalfToEven(255 * m), 0), 255), c * height * width, (c + 1) * height * width);
    for (let y = 0; y < image.height; y++) {
      const row = image.planes.subarray(c * size + y * image.width, c * size + (y + 1) * image.width);
      planes.set(row, c * height * width + (top + y) * width + left);
    }
  });
  return { width, height, planes };
}

function cropCenter(image, height, width, engine) {
  const halve =
    engine === "transformers" ? (margin) => Math.floor(margin / 2) : (margin) => roundHalfToEven(margin / 2);
  const top = halve(image.height - height);
  const left = halve(image.width - width);
  const channels = image.planes.length / (image.width * image.height);
  const planes = new Uint8Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const start = (c * image.height + top + y) * image.width + left;
      planes.set(image.planes.subarray(start, start + width), (c * height + y) * width);
    }
  }
  return { width, height, planes };
}

function trim(image, [rows, columns]) {
  if (!rows && !columns) return image;
  const { width: w, height: h } = image;
  const [height, width] = [h - rows, w - columns];
  const channels = image.planes.length / (w * h);
  const planes = new Uint8Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const start = (c * h + y) * w;
      planes.set(image.planes.subarray(start, start + width), (c * height + y) * width);
    }
  }
  return { width, height, planes };
}

// Rows and columns that the model does not use, and the size of an image with them.
function fittedSize(preprocess) {
  const rest = preprocess.trim ?? [0, 0];
  return { rest, size: preprocess.image_size.map((size, axis) => size + rest[axis]) };
}

// Where an image of h x w pixels lies between the bars of padding.
export function locatePhoto([h, w], preprocess) {
  const [height, width] = fittedSize(preprocess).size;
  const scale = Math.min(height / h, width / w);
  const inner = (size, largest) => Math.min(largest, Math.max(1, roundHalfToEven(size * scale)));
  const photo = { height: inner(h, height), width: inner(w, width) };
  return { ...photo, top: Math.floor((height - photo.height) / 2), left: Math.floor((width - photo.width) / 2) };
}

// The image at the model's size; one that is fitted stays as it is, since another time would crop it again.
export function fitImage(image, preprocess) {
  if (image.isFitted) return image;
  const { rest, size } = fittedSize(preprocess);
  const [height, width] = size;
  const { width: w, height: h } = image;
  if (Math.min(w, h) < preprocess.min_size) {
    throw new Error(`${w}x${h} pixels are fewer than a patch of ${preprocess.min_size}`);
  }
  if (preprocess.fit === "pad") {
    const photo = locatePhoto([h, w], preprocess);
    const resized = resize(image, photo.height, photo.width, preprocess);
    return { ...trim(pad(resized, photo, height, width, preprocess.mean), rest), photo, isFitted: true };
  }
  let scaledHeight = roundHalfToEven(height / preprocess.crop_fraction);
  let scaledWidth = roundHalfToEven(width / preprocess.crop_fraction);
  if (preprocess.fit === "crop") {
    if (h * scaledWidth <= w * scaledHeight) scaledWidth = Math.max(scaledWidth, Math.floor((scaledHeight * w) / h));
    else scaledHeight = Math.max(scaledHeight, Math.floor((scaledWidth * h) / w));
    if (scaledHeight * scaledWidth > Math.max(h * w, MAX_ENLARGED_PIXELS, MAX_OVERSIZE * height * width)) {
      throw new Error(`${w}x${h} pixels are too thin: a crop would enlarge them to ${scaledWidth}x${scaledHeight}`);
    }
  }
  const cropped = cropCenter(resize(image, scaledHeight, scaledWidth, preprocess), height, width, preprocess.engine);
  return { ...trim(cropped, rest), isFitted: true };
}
