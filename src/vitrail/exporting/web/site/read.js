// Files, and frames of the camera, -> pixels as `decode` in data/decode.py gives them: upright, transparency over white,
// no colour profile applied, one channel or three.

const MOST = 100_000_000; // pixels that are read

export async function readFile(file, channels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
    });
  } catch {
    throw new Error(`${file.name || "This"} is not an image that this browser can read.`);
  }
  if (bitmap.width * bitmap.height > MOST) {
    throw new Error(`${bitmap.width}x${bitmap.height} pixels are more than the ${MOST.toLocaleString("en")} that are read.`);
  }
  const image = pixelsOf(bitmap, bitmap.width, bitmap.height, channels);
  bitmap.close();
  return image;
}

export function pixelsOf(source, width, height, channels) {
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
    if (channels === 1) planes[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // Pillow's grey
    else {
      planes[i] = r;
      planes[size + i] = g;
      planes[2 * size + i] = b;
    }
  }
  return { width, height, planes };
}

export async function readExample(address, channels) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return pixelsOf(image, image.naturalWidth, image.naturalHeight, channels);
}
