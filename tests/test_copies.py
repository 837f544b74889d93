"""Near duplicates: every copy is found, and no two different pictures are taken for one."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

from vitrail.data import Images
from vitrail.data.near_duplicates import (
    MAX_PAIRS,
    MIN_INNER_SIMILARITY,
    MIN_SIMILARITY,
    center_and_normalize,
    compute_signature,
    find_near_duplicates,
    near_duplicate_pairs,
)


def scenes(n: int, side: int = 64) -> list[Image.Image]:
    """Pictures with structure of all sizes, as photos have it: noise with a 1/f spectrum, each another."""
    rng = np.random.default_rng(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    f[0, 0] = 1
    found = []
    for _ in range(n):
        shared = rng.normal(size=(side, side))
        planes = [np.fft.ifft2(np.fft.fft2(shared + 0.5 * rng.normal(size=(side, side))) / f).real for _ in range(3)]
        planes = [128 + 45 * (plane - plane.mean()) / plane.std() for plane in planes]
        found.append(Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8)))
    return found


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(0, 5, np.asarray(image).shape)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


COPIES = {
    "the same": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 30": lambda image: jpeg(image, 30),
    "half as large": lambda image: image.resize((32, 32), Image.BICUBIC),
    "twice as large": lambda image: image.resize((128, 128), Image.BICUBIC),
    "half as large, JPEG 50": lambda image: jpeg(image.resize((32, 32), Image.BICUBIC), 50),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "paler": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "noisy": noisy,
    "256 colours": lambda image: image.quantize(256).convert("RGB"),
    "a row less": lambda image: image.crop((0, 1, 64, 64)),
}


def images(pictures: list[Image.Image]) -> Images:
    pixels = [torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1) for p in pictures]
    n = len(pixels)
    return Images(pixels, [str(i) for i in range(n)], np.zeros(n, dtype=np.int64), ("a",))


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_across_splits_and_nothing_else(kind: str):
    originals = scenes(60)
    splits = {"train": images(originals), "test": images([COPIES[kind](p) for p in originals[::3]])}
    ticks = []
    pairs = find_near_duplicates(splits, lambda: ticks.append(1))
    assert {(pair.a, pair.b) for pair in pairs} == {(("train", 3 * i), ("test", i)) for i in range(20)}
    assert all(MIN_SIMILARITY <= pair.similarity <= 1.0001 for pair in pairs)
    assert len(ticks) == 80


def test_different_parts_of_one_photo_are_no_copies():
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        tiles = [
            Image.fromarray(photo[y : y + 100, x : x + 100])
            for y in range(0, height - 100, 100)
            for x in range(0, width - 100, 100)
        ]
        assert len(tiles) == 24
        assert find_near_duplicates({"all": images(tiles)}) == []


def test_two_pictures_in_the_same_frame_are_no_copies():
    framed = []
    for picture in scenes(6):
        canvas = Image.new("RGB", (64, 64), "white")
        canvas.paste("black", (4, 4, 60, 60))
        canvas.paste(picture.resize((48, 48)), (8, 8))
        framed.append(canvas)
    assert find_near_duplicates({"all": images(framed)}) == []
    framed.append(jpeg(framed[2], 60))
    assert [(pair.a[1], pair.b[1]) for pair in find_near_duplicates({"all": images(framed)})] == [(2, 6)]


def test_the_first_look_loses_no_pair():
    """The blocks and the 64 directions change nothing: the same pairs as comparing everything with everything."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(700, 256))
    near = base[:300] + rng.normal(size=(300, 256)) * rng.uniform(0.1, 0.6, (300, 1))  # around the limit
    stack = np.concatenate([base, near])
    signatures = (stack * 127 / np.abs(stack).max(1, keepdims=True)).round().astype(np.int8)
    fine = center_and_normalize(torch.from_numpy(signatures).float())
    inside = center_and_normalize(fine.view(-1, 16, 16)[:, 4:12, 4:12].flatten(1))
    whole = ((fine @ fine.T >= MIN_SIMILARITY) & (inside @ inside.T >= MIN_INNER_SIMILARITY)).triu(1).nonzero()
    expected = {(int(i), int(j)) for i, j in whole}
    assert 50 < len(expected) < 300
    for block in (64, 333, 5000):
        assert {(i, j) for i, j, _ in near_duplicate_pairs(signatures, block=block)} == expected


def test_a_crowd_is_not_paired_in_full_and_nobody_in_it_is_forgotten():
    """A camera that stands still gives a list that grows with its images, not with their square."""
    rng = np.random.default_rng(0)
    n = 1500
    stack = rng.normal(size=256) + 0.05 * rng.normal(size=(n, 256))
    signatures = (stack * 127 / np.abs(stack).max(1, keepdims=True)).round().astype(np.int8)
    kinds = ["test" if i % 100 == 7 else "train" for i in range(n)]
    for block in (600, 2048):
        pairs = [(i, j) for i, j, _ in near_duplicate_pairs(signatures, kinds, block)]
        assert len(pairs) == len(set(pairs)) <= 4 * MAX_PAIRS * n
        for kind in ("train", "test"):
            partners = {i for i, j in pairs if kinds[j] == kind} | {j for i, j in pairs if kinds[i] == kind}
            assert partners == set(range(n))
    few = 2 * MAX_PAIRS + 1  # so many have all their pairs
    assert len(near_duplicate_pairs(signatures[:few])) == few * (few - 1) / 2
    assert len(near_duplicate_pairs(signatures[: few + 1])) == (few + 1) * few / 2 - 1


def test_what_has_no_fine_structure_or_too_few_pixels_is_not_compared():
    assert compute_signature(torch.full((3, 40, 40), 200, dtype=torch.uint8)) is None
    slope = torch.linspace(0, 255, 64).to(torch.uint8).expand(3, 64, 64)
    assert compute_signature(slope) is None  # a plain gradient, as of a sky
    digits = torch.from_numpy((load_digits().images * 15).astype(np.uint8)).unsqueeze(1)
    assert all(compute_signature(digit) is None for digit in digits[:50])
    assert find_near_duplicates({"all": images([])}) == []
    assert near_duplicate_pairs(np.zeros((0, 256), dtype=np.int8)) == []


def test_the_most_alike_come_first_and_a_signature_is_small():
    first, second = scenes(2)
    pairs = find_near_duplicates({"all": images([first, second, jpeg(first, 30), first.copy(), noisy(second)])})
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)
    assert pairs[0].a == ("all", 0) and pairs[0].b == ("all", 3)
    kept = compute_signature(images([first])[0])
    assert kept is not None and kept.dtype == np.int8 and kept.shape == (256,)
