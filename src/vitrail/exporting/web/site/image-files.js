// Image files and camera frames -> pixels, as `decode` in data/decode.py gives them: rotated by EXIF, transparency over
// white, without a color profile, with one channel or three.

const MAX_PIXELS = 100_000_000;

export async function readImageFile(file, channels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Error(`${file.name || "This"} is not an image that this browser can read.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new Error(`${width}x${height} pixels are more than the limit of ${MAX_PIXELS.toLocaleString("en")}.`);
  }
  const image = extractPixels(bitmap, width, height, channels);
  bitmap.close();
  return image;
}

export async function readImageUrl(url, channels) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return extractPixels(image, image.naturalWidth, image.naturalHeight, channels);
}

export function extractPixels(source, width, height, channels) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("The image is too large for this browser.");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const size = width * height;
  const planes = new Uint8Array(channels * size);
  for (let i = 0; i < size; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) {
      planes[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // Pillow's grayscale
    } else {
      planes[i] = r;
      planes[size + i] = g;
      planes[2 * size + i] = b;
    }
  }
  return { width, height, planes };
}

export function pixelsToDataUrl({ width, height, planes }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(toImageData({ width, height, planes }), 0, 0);
  return canvas.toDataURL("image/png");
}

export function toImageData({ width, height, planes }) {
  const data = new ImageData(width, height);
  const size = width * height;
  const [green, blue] = planes.length === size ? [0, 0] : [size, 2 * size];
  for (let i = 0; i < size; i++) data.data.set([planes[i], planes[green + i], planes[blue + i], 255], 4 * i);
  return data;
}
