"""Resizing, cropping and gray conversion equal torchvision's, bit for bit; the command line does not import it."""

import subprocess
import sys

import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from vitrail.data import geometry

SHAPES = [(3, 37, 51), (1, 20, 20), (2, 3, 16, 40), (4, 9, 9)]
SIZES = [(20, 20), (7, 64), (37, 51), (1, 2), (90, 3)]


def make_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
@pytest.mark.parametrize("capability", [None, "DEFAULT"])
@pytest.mark.parametrize("convert", [torch.Tensor.byte, torch.Tensor.float, torch.Tensor.short])
def test_resize(interpolation, capability, convert, monkeypatch):
    if capability:  # a processor on which torch's uint8 kernel is imprecise
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for shape in SHAPES:
        for image in (make_pixels(*shape), make_pixels(*shape[:-3], *shape[-2:], shape[-3]).movedim(-1, -3)):
            for height, width in SIZES:
                ours = geometry.resize(convert(image), height, width, interpolation)
                mode = InterpolationMode(interpolation)
                theirs = F.resize(convert(image), [height, width], interpolation=mode, antialias=True)
                assert torch.equal(ours, theirs), (shape, height, width)
                assert ours.dtype == theirs.dtype
                assert ours.is_contiguous() == theirs.is_contiguous()


def test_resize_to_one_pixel():
    image = make_pixels(3, 40, 40)
    theirs = F.resize(image.float(), [1, 1], antialias=True).round().byte()
    assert torch.equal(geometry.resize(image, 1, 1), theirs)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_with_pillow(interpolation, channels):
    for shape in ((channels, 37, 51), (channels, 5, 200)):
        image = make_pixels(*shape)
        for height, width in SIZES:
            ours = geometry.resize_with_pillow(image, height, width, interpolation)
            resized = F.resize(F.to_pil_image(image), [height, width], interpolation=InterpolationMode(interpolation))
            assert torch.equal(ours, F.pil_to_tensor(resized))


def test_crops():
    for shape in SHAPES:
        image = make_pixels(*shape)
        for height in range(1, 24):
            for width in (1, 2, 8, 15, 20, 41, 60):
                ours = geometry.center_crop(image, height, width)
                assert torch.equal(ours, F.center_crop(image, [height, width])), (shape, height, width)
        for top, left, height, width in [(0, 0, 5, 5), (3, 4, 9, 9), (-3, 2, 8, 8), (5, -4, 60, 60), (-2, -2, 70, 5)]:
            theirs = F.crop(image, top, left, height, width)
            assert torch.equal(geometry.crop(image, top, left, height, width), theirs), (top, left, height, width)


@pytest.mark.parametrize("shape", [(3, 37, 51), (2, 3, 9, 9), (1, 20, 20), (5, 1, 8, 8)])
def test_gray_and_color(shape):
    image = make_pixels(*shape)
    assert torch.equal(geometry.to_gray(image), F.rgb_to_grayscale(image))
    assert torch.equal(geometry.to_rgb(image), F.grayscale_to_rgb(image))
    assert torch.equal(geometry.to_gray(image / 255), F.rgb_to_grayscale(image / 255))


def test_the_command_line_does_not_import_torchs_compiler():
    """It takes longer than all other imports together."""
    code = (
        "import sys\n"
        "import vitrail.runs.train, vitrail.evaluation.evaluation, vitrail.prediction.predict, vitrail.serving.server\n"
        "import vitrail.exporting.formats, vitrail.sweeps.sweep, vitrail.explanation.api, vitrail.data.check\n"
        "heavy = 'torchvision', 'torch._dynamo', 'sympy', 'sklearn', 'matplotlib', 'transformers', 'timm', 'datasets'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
