"""Near-duplicates: every copy is found, and no two different pictures are paired."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

from vitrail.data.images import Images
from vitrail.data.near_duplicates import (
    MAX_PAIRS,
    MIN_INNER_SIMILARITY,
    MIN_SIMILARITY,
    center_and_normalize,
    compute_signature,
    find_near_duplicates,
    near_duplicate_pairs,
)


def scenes(n: int, size: int = 64) -> list[Image.Image]:
    """Different pictures with structure of all scales, as in photos: noise with a 1/f spectrum."""
    rng = np.random.default_rng(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    f[0, 0] = 1
    pictures = []
    for _ in range(n):
        shared = rng.normal(size=(size, size))
        planes = [np.fft.ifft2(np.fft.fft2(shared + 0.5 * rng.normal(size=(size, size))) / f).real for _ in range(3)]
        planes = [128 + 45 * (plane - plane.mean()) / plane.std() for plane in planes]
        pictures.append(Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8)))
    return pictures


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(0, 5, np.asarray(image).shape)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


COPIES = {
    "identical": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 30": lambda image: jpeg(image, 30),
    "half size": lambda image: image.resize((32, 32), Image.BICUBIC),
    "double size": lambda image: image.resize((128, 128), Image.BICUBIC),
    "half size, JPEG 50": lambda image: jpeg(image.resize((32, 32), Image.BICUBIC), 50),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "less color": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "noisy": noisy,
    "256 colors": lambda image: image.quantize(256).convert("RGB"),
    "a row cropped": lambda image: image.crop((0, 1, 64, 64)),
}


def images(pictures: list[Image.Image]) -> Images:
    pixels = [torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1) for p in pictures]
    n = len(pixels)
    return Images(pixels, [str(i) for i in range(n)], np.zeros(n, dtype=np.int64), ("a",))


@pytest.mark.parametrize("change", COPIES)
def test_every_copy_is_found_across_splits_and_nothing_else(change: str):
    originals = scenes(60)
    splits = {"train": images(originals), "test": images([COPIES[change](p) for p in originals[::3]])}
    ticks = []
    pairs = find_near_duplicates(splits, lambda: ticks.append(1))
    assert {(pair.a, pair.b) for pair in pairs} == {(("train", 3 * i), ("test", i)) for i in range(20)}
    assert all(MIN_SIMILARITY <= pair.similarity <= 1.0001 for pair in pairs)
    assert len(ticks) == 80


def test_different_tiles_of_one_photo_are_not_duplicates():
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        tiles = [
            Image.fromarray(photo[y : y + 100, x : x + 100])
            for y in range(0, height - 100, 100)
            for x in range(0, width - 100, 100)
        ]
        assert len(tiles) == 24
        assert find_near_duplicates({"all": images(tiles)}) == []


def test_two_pictures_in_the_same_frame_are_not_duplicates():
    framed = []
    for picture in scenes(6):
        canvas = Image.new("RGB", (64, 64), "white")
        canvas.paste("black", (4, 4, 60, 60))
        canvas.paste(picture.resize((48, 48)), (8, 8))
        framed.append(canvas)
    assert find_near_duplicates({"all": images(framed)}) == []
    framed.append(jpeg(framed[2], 60))
    assert [(pair.a[1], pair.b[1]) for pair in find_near_duplicates({"all": images(framed)})] == [(2, 6)]


def test_the_prefilter_misses_no_pair():
    """Blocks and the prefilter change nothing: the pairs are those of a full comparison."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(700, 256))
    near = base[:300] + rng.normal(size=(300, 256)) * rng.uniform(0.1, 0.6, (300, 1))  # around the threshold
    stack = np.concatenate([base, near])
    signatures = (stack * 127 / np.abs(stack).max(1, keepdims=True)).round().astype(np.int8)
    full = center_and_normalize(torch.from_numpy(signatures).float())
    inner = center_and_normalize(full.view(-1, 16, 16)[:, 4:12, 4:12].flatten(1))
    pairs = ((full @ full.T >= MIN_SIMILARITY) & (inner @ inner.T >= MIN_INNER_SIMILARITY)).triu(1).nonzero()
    expected = {(int(i), int(j)) for i, j in pairs}
    assert 50 < len(expected) < 300
    for block_size in (64, 333, 5000):
        assert {(i, j) for i, j, _ in near_duplicate_pairs(signatures, block_size=block_size)} == expected


def test_many_similar_images_are_not_all_paired_but_each_is_in_a_pair():
    """For images of a fixed camera the number of pairs grows linearly, not quadratically."""
    rng = np.random.default_rng(0)
    n = 1500
    stack = rng.normal(size=256) + 0.05 * rng.normal(size=(n, 256))
    signatures = (stack * 127 / np.abs(stack).max(1, keepdims=True)).round().astype(np.int8)
    groups = ["test" if i % 100 == 7 else "train" for i in range(n)]
    for block_size in (600, 2048):
        pairs = [(i, j) for i, j, _ in near_duplicate_pairs(signatures, groups, block_size)]
        assert len(pairs) == len(set(pairs)) <= 4 * MAX_PAIRS * n
        for group in ("train", "test"):
            partners = {i for i, j in pairs if groups[j] == group} | {j for i, j in pairs if groups[i] == group}
            assert partners == set(range(n))
    few = 2 * MAX_PAIRS + 1  # up to this number, all pairs are returned
    assert len(near_duplicate_pairs(signatures[:few])) == few * (few - 1) / 2
    assert len(near_duplicate_pairs(signatures[: few + 1])) == (few + 1) * few / 2 - 1


def test_flat_and_tiny_images_are_not_compared():
    assert compute_signature(torch.full((3, 40, 40), 200, dtype=torch.uint8)) is None
    gradient = torch.linspace(0, 255, 64).to(torch.uint8).expand(3, 64, 64)
    assert compute_signature(gradient) is None  # such as a sky
    digits = torch.from_numpy((load_digits().images * 15).astype(np.uint8)).unsqueeze(1)
    assert all(compute_signature(digit) is None for digit in digits[:50])
    assert find_near_duplicates({"all": images([])}) == []
    assert near_duplicate_pairs(np.zeros((0, 256), dtype=np.int8)) == []


def test_pairs_are_sorted_by_similarity_and_a_signature_is_small():
    first, second = scenes(2)
    pairs = find_near_duplicates({"all": images([first, second, jpeg(first, 30), first.copy(), noisy(second)])})
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)
    assert pairs[0].a == ("all", 0) and pairs[0].b == ("all", 3)
    signature = compute_signature(images([first])[0])
    assert signature is not None and signature.dtype == np.int8 and signature.shape == (256,)
