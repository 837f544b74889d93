"""Images of more than 8 bits: which of their values are black and white.

A file of unsigned integers says it by its bit depth: 0 is black, and the largest value of that depth is white. Floats
are taken as 0 to 1. Anything else is refused, because no rule is right for all files: signed and 32-bit integers, other
floats, and files that use so little of their range that they would be almost black (12 bits stored in 16). A rule that
stretches the values of each file would make images of different brightness alike.
"""

import numpy as np
from PIL import Image

DEPTH_RULE = "their bit depth gives black and white, and floats are taken as 0 to 1"
DEPTH_WARNING = f"16 bits or floats: {DEPTH_RULE}"  # what the server says about an image
MIN_BRIGHTEST = 1 / 8  # of the whole range: the brightest value of an image that is not almost black
STRIP_PIXELS = 1 << 20  # pixels that are converted to float64 at a time
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1
CONVERT_RANGE = "save it with 8 bits, or scale it to the whole range of 16 bits"


def describe_over_8_bits(n: int, first: str) -> str:
    """Returns the sentence on `n` images of more than 8 bits, the first of which is named."""
    return f"{n:,} image{'s' * (n > 1)} in 16 bits or floats, first {first}: {DEPTH_RULE}"


class UnclearRange(Exception):
    """An image whose file does not say which of its values are black and white; the text is the reason."""


def has_more_than_8_bits(mode: str) -> bool:
    """Returns whether images of Pillow's mode have one channel of 16 or 32 bits, or floats."""
    return mode.startswith(("I", "F"))


def has_16_bit_colors(image: Image.Image) -> bool:
    """Returns whether an image that is not loaded yet has several channels of 16 bits, which Pillow reduces to 8."""
    arguments = [each for tile in getattr(image, "tile", ()) for each in np.atleast_1d(np.array(tile[3], dtype=object))]
    return len(image.getbands()) > 1 and any(isinstance(each, str) and ";16" in each for each in arguments)


def check_brightness(image: Image.Image) -> None:
    """Raises `UnclearRange` if an image whose 16-bit colors Pillow reduced to 8 bits is almost black."""
    extrema = np.array(image.getextrema())[: 3 if image.mode.startswith("RGB") else 1]
    check_range(float(extrema[:, 0].min()), float(extrema[:, 1].max()), 255, "8 of its 16 bits")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Converts a loaded image of one channel with more than 8 bits; raises `UnclearRange`."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    white = find_white(image, low, high)
    check_range(low, high, white, "its range")
    is_negative = image_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow inverts these only in 8 bits
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = values[top : top + rows].astype(np.float64)
        pixels[top : top + rows] = ((white - strip if is_negative else strip) * 255 / white).round()
    return Image.fromarray(pixels)


def find_white(image: Image.Image, low: float, high: float) -> float:
    """Returns the value that is white; raises `UnclearRange`."""
    if image.mode.startswith("F"):
        if not np.isfinite((low, high)).all():
            raise UnclearRange(f"it has values that are not finite numbers; {CONVERT_RANGE}")
        if low < 0 or high > 1:
            raise UnclearRange(f"its floats are {low:.4g} to {high:.4g}, not 0 to 1; scale them, or save 8 bits")
        return 1.0
    if image_tag(image, SAMPLE_FORMAT, UNSIGNED) != UNSIGNED:
        raise UnclearRange(f"its integers are signed, {low:.0f} to {high:.0f}; {CONVERT_RANGE}")
    bits = image_tag(image, BITS_PER_SAMPLE, 16)
    if bits > 16:
        raise UnclearRange(f"its integers have {bits} bits, {low:.0f} to {high:.0f}; {CONVERT_RANGE}")
    return float((1 << bits) - 1)


def check_range(low: float, high: float, white: float, what: str) -> None:
    """Raises `UnclearRange` if an image that is not of one value would be almost black."""
    if low != high and high < MIN_BRIGHTEST * white:
        raise UnclearRange(
            f"its brightest value is {high:.6g} of {white:.6g}, so it uses little of {what}; {CONVERT_RANGE}"
        )


def image_tag(image: Image.Image, tag: int, default: int = -1) -> int:
    """Returns the value of a TIFF's tag, the first if it has one for each channel; `default` if there is none."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
