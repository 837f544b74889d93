"""The preprocessing: geometry, normalization, JSON."""

import json

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError

MEAN, STD = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
MEAN_COLOR = (51, 102, 153)


def white(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.full((channels, height, width), 255, dtype=torch.uint8)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def colors(pixels: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(color) for color in pixels.flatten(1).T.tolist()}


# geometry


@pytest.mark.parametrize(
    ("height", "width", "content"),
    [(20, 40, (slice(10, 30), slice(None))), (40, 20, (slice(None), slice(10, 30)))],
    ids=["wide", "tall"],
)
def test_padding_keeps_the_whole_image_and_fills_with_the_mean_color(height: int, width: int, content: tuple):
    image = Preprocess(image_size=(40, 40), mean=MEAN, std=STD).fit_image(white(height, width))
    assert image.shape == (3, 40, 40) and image.dtype == torch.uint8
    assert colors(image[(slice(None), *content)]) == {(255, 255, 255)}
    border = torch.ones(40, 40, dtype=torch.bool)
    border[content] = False
    assert colors(image[:, border]) == {MEAN_COLOR}


def test_padding_centers_the_unchanged_pixels_if_nothing_is_resized():
    image = noise(20, 40)
    assert torch.equal(Preprocess(image_size=(40, 40)).fit_image(image)[:, 10:30], image)


def test_padding_to_a_model_that_is_not_square():
    image = Preprocess(image_size=(16, 48), mean=MEAN, std=STD).fit_image(white(16, 16))
    assert image.shape == (3, 16, 48)
    assert colors(image[..., 16:32]) == {(255, 255, 255)}
    assert colors(image[..., :16]) == colors(image[..., 32:]) == {MEAN_COLOR}


def test_padding_keeps_proportions():
    image = white(20, 40)
    image[:, 5:15, 15:25] = 0  # a black square of 10x10
    small = Preprocess(image_size=(20, 20)).fit_image(image)
    black = (small[0] < 64).nonzero()
    height, width = (black.max(0).values - black.min(0).values + 1).tolist()
    assert abs(height - width) <= 1 and height == pytest.approx(5, abs=1)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (33, 32), (64, 64)])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_any_shape_becomes_the_shape_of_the_model(fit: str, shape: tuple[int, int], size: tuple[int, int]):
    image = Preprocess(image_size=size, fit=fit, crop_fraction=0.875).fit_image(noise(*shape))
    assert image.shape == (3, *size) and image.dtype == torch.uint8


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_an_image_of_the_models_size_is_unchanged(fit: str):
    image = noise(32, 32)
    assert torch.equal(Preprocess(image_size=(32, 32), fit=fit).fit_image(image), image)


def test_stretching_keeps_the_whole_image_without_padding():
    image = white(20, 40)
    image[..., :20] = 0
    stretched = Preprocess(image_size=(20, 20), fit="stretch").fit_image(image)
    assert colors(stretched[..., :9]) == {(0, 0, 0)} and colors(stretched[..., 11:]) == {(255, 255, 255)}


def test_cropping_takes_the_center_without_padding():
    image = white(20, 40)
    image[..., :10] = image[..., 30:] = 0  # white only in the center
    cropped = Preprocess(image_size=(20, 20), fit="crop").fit_image(image)
    assert colors(cropped) == {(255, 255, 255)}


@pytest.mark.parametrize("shape", [(300, 400), (512, 256), (256, 256), (100, 150), (224, 224), (640, 480)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_fraction_of_0875_is_resize_256_and_crop_224(shape: tuple[int, int], interpolation: str):
    image = noise(*shape)
    ours = Preprocess(image_size=(224, 224), fit="crop", crop_fraction=0.875, interpolation=interpolation).fit_image(
        image
    )
    mode = InterpolationMode(interpolation)
    theirs = v2.Compose([v2.Resize(256, interpolation=mode, antialias=True), v2.CenterCrop(224)])(image)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_a_smaller_crop_fraction_shows_less():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    ranges = [
        int(image.max()) - int(image.min())
        for fraction in (1.0, 0.75, 0.5)
        for image in [Preprocess(image_size=(64, 64), fit="crop", crop_fraction=fraction).fit_image(ramp)]
    ]
    assert ranges == [63, pytest.approx(47, abs=1), pytest.approx(31, abs=1)]


def test_shrinking_averages_pixels():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = Preprocess(image_size=(8, 8)).fit_image(stripes)
    assert (small.float() - 127.5).abs().max() < 8


def test_one_channel_stays_one_channel():
    preprocess = Preprocess(image_size=(16, 16), mean=(0.4,), std=(0.2,))
    image = preprocess.fit_image(white(8, 16, channels=1))
    assert preprocess.channels == 1 and image.shape == (1, 16, 16)
    assert colors(image[:, :4]) == {(102,)}


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (3, 3)])
def test_an_image_smaller_than_a_patch_is_refused(fit: str, shape: tuple[int, int]):
    preprocess = Preprocess(image_size=(16, 16), fit=fit, min_size=4)
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[0]} pixels are fewer than a patch of 4"):
        preprocess.fit_image(white(*shape))
    with pytest.raises(ValueError, match="fewer"):
        preprocess.fit_canvas(white(*shape))
    assert preprocess.fit_image(white(4, 4)).shape == (3, 16, 16)


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (16, 3_125_000)])
def test_a_small_file_cannot_need_gigabytes(shape: tuple[int, int]):
    """Cropped, 100,000 x 1 pixels would first be resized to 22,400,000 x 224."""
    crop = Preprocess(image_size=(224, 224), fit="crop")
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[0]} pixels are too thin"):
        crop.fit_image(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, *shape))
    for fit in ("pad", "stretch"):
        Preprocess(image_size=(224, 224), fit=fit).check_size(*shape)


def test_a_thin_image_is_cropped_unless_it_would_be_enlarged_enormously():
    crop = Preprocess(image_size=(224, 224), fit="crop", crop_fraction=0.875)
    assert crop.fit_image(noise(4, 400)).shape == (3, 224, 224)  # a hundred times as wide as it is high
    crop.check_size(300, 200_000)  # wider, but shrunk
    Preprocess(image_size=(8000, 8000), fit="crop").check_size(100, 180)  # an ordinary image for a large model
    with pytest.raises(ValueError, match=r"^2100x4 pixels are too thin: a crop would enlarge them to 134400x256$"):
        crop.check_size(4, 2100)


# normalization


def test_normalization_subtracts_the_mean_and_divides_by_the_standard_deviation():
    pixels = torch.stack([noise(5, 7), noise(5, 7).flip(-1)])
    ours = Preprocess(image_size=(5, 7), mean=MEAN, std=STD).normalize(pixels)
    assert ours.dtype == torch.float32 and ours.shape == (2, 3, 5, 7)
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert torch.allclose(ours[:, channel].double(), expected, atol=1e-5)


def test_normalization_agrees_with_torchvision():
    pixels = noise(9, 9)[None]
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(pixels)
    assert torch.allclose(Preprocess(image_size=(9, 9), mean=MEAN, std=STD).normalize(pixels), theirs, atol=1e-6)


def test_normalized_padding_is_nearly_zero():
    preprocess = Preprocess(image_size=(40, 40), mean=MEAN, std=STD)
    normalized = preprocess.normalize(preprocess.fit_image(white(20, 40))[None])
    assert normalized[0, :, 0, 0].abs().max() < 0.02


# JSON

SAMPLE = Preprocess(
    image_size=(96, 128), fit="crop", crop_fraction=0.9, interpolation="bicubic", mean=MEAN, std=STD, min_size=16
)


def test_a_preprocessing_survives_json():
    again = Preprocess.from_json(json.loads(json.dumps(SAMPLE.to_json())))
    assert again == SAMPLE
    assert again.image_size == (96, 128) and again.mean == MEAN
    assert hash(again) == hash(SAMPLE)


def test_pixels_are_the_same_after_json():
    image = noise(100, 120)
    again = Preprocess.from_json(json.loads(json.dumps(SAMPLE.to_json())))
    assert torch.equal(again.fit_image(image), SAMPLE.fit_image(image))


def test_an_unknown_field_suggests_the_nearest_one():
    with pytest.raises(UsageError, match="no field 'interpolaton'.*did you mean interpolation"):
        Preprocess.from_json(SAMPLE.to_json() | {"interpolaton": "bicubic"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "padd"}, "fit 'padd' is not known.*pad"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is not known.*bicubic"),
        ({"std": (0.5, 0.0, 0.5)}, "are not valid for normalization"),
        ({"std": (0.5,)}, "are not valid for normalization"),
        ({"mean": (), "std": ()}, "are not valid for normalization"),
        ({"crop_fraction": 0.0}, "crop_fraction is 0.0"),
        ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
    ],
)
def test_impossible_values_are_refused(change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        Preprocess(**{"image_size": (8, 8), **change})


def test_a_long_thin_image_needs_little_memory():
    """Padded at its own size, 40,000 x 8 pixels would be a canvas of 4.8 GB."""
    thin = torch.full((3, 8, 40_000), 200, dtype=torch.uint8)
    preprocess = Preprocess(image_size=(32, 32), min_size=4)
    assert preprocess.fit_canvas(thin).numel() <= 3 * (4 * 32) ** 2 * 1.1
    fitted = preprocess.fit_image(thin)
    assert fitted.shape == (3, 32, 32)
    assert (fitted == 200).any()
