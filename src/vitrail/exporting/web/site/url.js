// The view as the fragment of the page's address, and back. Pure: `info` describes the classifier.

const KEYS = ["image", "view", "class", "against", "layer", "head", "patch", "direction", "hide"];
const PIXELS_PREFIX = "px:";
export const MAX_PIXEL_BYTES = 4096; // of an own image that a link may contain
export const VIEWS = ["evidence", "attention", "layers"];

export function formatHash(values) {
  const present = KEYS.map((key) => [key, values[key]]).filter(([, value]) => value !== null && value !== undefined);
  return `#${new URLSearchParams(present)}`;
}

// The view that a fragment describes. Values that do not suit the classifier become defaults.
export function parseHash(text, info) {
  const values = new URLSearchParams(text.replace(/^#/, ""));
  const [depth, patches] = [info.depth, info.grid[0] * info.grid[1]];
  const label = (name) => (info.classes.includes(name) ? info.classes.indexOf(name) : null);
  const patch = parseInteger(values.get("patch"), 0, patches - 1, null);
  const view = values.get("view");
  return {
    example: parseInteger(values.get("image"), 0, info.examples.length - 1, 0),
    ...parsePixels(values.get("image"), info),
    view: VIEWS.includes(view) ? view : "evidence",
    label: label(values.get("class")),
    against: label(values.get("against")),
    layer: parseInteger(values.get("layer"), 0, depth - 1, depth - 1),
    head: parseInteger(values.get("head"), 0, info.heads - 1, -1),
    patch,
    isPinned: patch !== null,
    direction: values.get("direction") === "from" ? "from" : "to",
    hiddenPercent: parseInteger(values.get("hide"), 0, 95, 0),
  };
}

export function encodePixels(planes) {
  const base64 = btoa(String.fromCharCode(...planes));
  return PIXELS_PREFIX + base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// An own image in a link: { pixels, isDamaged }.
function parsePixels(text, info) {
  if (!text?.startsWith(PIXELS_PREFIX)) return { pixels: null, isDamaged: false };
  const [height, width] = info.preprocess.image_size;
  try {
    const base64 = text.slice(PIXELS_PREFIX.length).replaceAll("-", "+").replaceAll("_", "/");
    const planes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const isComplete = planes.length === info.channels * height * width;
    return { pixels: isComplete ? { width, height, planes, isFitted: true } : null, isDamaged: !isComplete };
  } catch {
    return { pixels: null, isDamaged: true };
  }
}

function parseInteger(text, low, high, fallback) {
  return /^-?\d+$/.test(text || "") && Number(text) >= low && Number(text) <= high ? Number(text) : fallback;
}
