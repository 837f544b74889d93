"""Batches depend on the seed, the epoch and the image, and on nothing else."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vitrail.classifier import Classifier
from vitrail.data import loader
from vitrail.data.augment import Augment, build_augmentation, mix_batch, shift_images
from vitrail.data.decode import ImageError
from vitrail.data.encoded import ImageFiles
from vitrail.data.images import Images, load_into_memory
from vitrail.data.loader import EvaluationLoader, TrainLoader, count_batches, default_workers
from vitrail.data.preprocess import Preprocess
from vitrail.data.randomness import keyed_uniform
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.runs.validation import evaluate_shard, pad_forward_calls
from vitrail.training.distributed import World

N = 11
PREPROCESS = Preprocess(image_size=(8, 8))
RANDOM_AUGMENT = Augment(crop="resized", policy="randaugment", random_erasing=0.5)


def files(folder: Path, n: int = N, size: tuple[int, int] = (12, 10)) -> Images:
    """Images in files, image `i` of label `i`."""
    paths = []
    for i in range(n):
        paths.append(folder / f"{i:02d}.png")
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    classes = tuple(f"{i:02d}" for i in range(n))
    return Images(ImageFiles(paths), [path.name for path in paths], np.arange(n), classes)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return files(tmp_path)


def batches(images: Images, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    transform = build_augmentation(options.pop("augment", RANDOM_AUGMENT), PREPROCESS)
    epoch, start = options.pop("epoch", 0), options.pop("start", 0)
    loader = TrainLoader(images, transform, **{"batch_size": 4, "seed": 0, "workers": 0, **options})
    return list(loader.epoch(epoch, start))


def identical(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True)
    )


# training


@pytest.mark.newest
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_identical_for_any_number_of_workers(workers: int, images: Images):
    for epoch in (0, 1):
        assert identical(batches(images, epoch=epoch, workers=workers), batches(images, epoch=epoch))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_starting_later_gives_the_remaining_batches(start: int, images: Images):
    assert identical(batches(images, start=start), batches(images)[start:])


def test_starting_later_with_workers_gives_the_remaining_batches(images: Images):
    assert identical(batches(images, start=2, workers=2), batches(images)[2:])


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_gives_another_order_and_other_pixels(change: dict, images: Images):
    ours, theirs = batches(images), batches(images, **change)
    labels, others = (torch.cat([y for _, y in loaded]) for loaded in (ours, theirs))
    assert labels.tolist() != others.tolist()
    pixels, other_pixels = (torch.cat([x for x, _ in loaded]) for loaded in (ours, theirs))
    assert not any(
        torch.equal(pixels[int((labels == i).nonzero())], other_pixels[int((others == i).nonzero())]) for i in range(N)
    )


def test_every_image_is_in_an_epoch_once(images: Images):
    for epoch in range(5):
        labels = torch.cat([y for _, y in batches(images, epoch=epoch)])
        assert sorted(labels.tolist()) == list(range(N))


def test_the_last_small_batch_is_kept(images: Images):
    assert [len(y) for _, y in batches(images)] == [4, 4, 3]
    assert count_batches(len(images), 4) == 3


@pytest.mark.parametrize("batch_size", [1, 10, 11, 12, 128])
def test_the_number_of_batches_is_known_in_advance_and_never_zero(batch_size: int, images: Images):
    ours = batches(images, batch_size=batch_size)
    loader = TrainLoader(images, build_augmentation(RANDOM_AUGMENT, PREPROCESS), batch_size, seed=0)
    assert len(ours) == count_batches(len(images), batch_size) == len(loader) > 0
    assert sum(len(y) for _, y in ours) == N


def test_batches_are_uint8_pixels_and_int64_labels(images: Images):
    x, y = batches(images)[0]
    assert x.dtype == torch.uint8 and x.shape == (4, 3, 8, 8)
    assert y.dtype == torch.int64 and y.shape == (4,)


def test_pixels_belong_to_their_labels(images: Images):
    for x, y in batches(images, augment=Augment(flip=0)):
        for pixels, label in zip(x, y, strict=True):
            assert torch.equal(pixels, PREPROCESS.fit_image(images[int(label)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_does_not_change_the_global_generators(workers: int, images: Images):
    torch.manual_seed(5)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(images, workers=workers)
    list(EvaluationLoader(images, PREPROCESS, batch_size=4, workers=workers))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_the_global_generator_is_restored_after_each_batch(images: Images):
    transform = build_augmentation(RANDOM_AUGMENT, PREPROCESS)
    before = torch.get_rng_state()
    loaded = TrainLoader(images, transform, batch_size=4, seed=0, workers=0).epoch(0)
    next(loaded)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_do_not_depend_on_the_global_generator(images: Images):
    torch.manual_seed(1)
    ours = batches(images)
    torch.manual_seed(2)
    assert identical(batches(images), ours)


@pytest.mark.newest
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_corrupt_file_stops_training_and_evaluation_and_is_named(workers: int, images: Images):
    path = images.pixels.paths[7]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"07\.png") as caught:
        batches(images, workers=workers)
    assert caught.value.name == str(path) and caught.value.reason.startswith("damaged")
    with pytest.raises(ImageError, match=r"07\.png"):
        list(EvaluationLoader(images, PREPROCESS, batch_size=4, workers=workers))


@pytest.mark.parametrize("crop", ["none", "resized", "padded"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_smaller_than_a_patch_is_named(crop: str, workers: int, images: Images):
    Image.new("RGB", (3, 20)).save(images.pixels.paths[2])
    transform = build_augmentation(Augment(crop=crop), Preprocess(image_size=(8, 8), min_size=4))
    with pytest.raises(ImageError, match=r"02\.png: 3x20 pixels are fewer"):
        list(TrainLoader(images, transform, batch_size=4, seed=0, workers=workers).epoch(0))


def test_keyed_numbers_are_uniform_and_depend_only_on_the_index():
    numbers = keyed_uniform(range(20_000), 3, "together", 7, 1)
    assert numbers.shape == (20_000, 3) and numbers.min() >= 0 and numbers.max() < 1
    counts = np.stack([np.histogram(column, 16, (0, 1))[0] for column in numbers.T])
    assert np.abs(counts - 1250).max() < 5 * 1250**0.5
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 0.03
    assert np.array_equal(keyed_uniform([5, 3], 3, "together", 7, 1), numbers[[5, 3]])
    assert not np.array_equal(keyed_uniform([5], 3, "together", 7, 2), numbers[[5]])


@pytest.mark.parametrize("augment", [Augment(), Augment(crop="padded"), Augment(flip=0)], ids=repr)
def test_images_in_memory_of_the_models_size_take_a_fast_path_to_the_same_batches(augment: Augment, tmp_path: Path):
    model_size_files = files(tmp_path, size=(8, 8))
    in_memory = load_into_memory(model_size_files, 10**9)
    assert isinstance(in_memory.pixels, torch.Tensor)
    assert identical(batches(in_memory, augment=augment), batches(model_size_files, augment=augment))


def test_shifts_agree_with_torchvision():
    pixels = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8)
    corners = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3], [4, 0]])
    ours = shift_images(pixels, corners, border=2)
    padded = v2.functional.pad(pixels, [2, 2, 2, 2], padding_mode="reflect")
    for image, big, (y, x) in zip(ours, padded, corners.tolist(), strict=True):
        assert torch.equal(image, v2.functional.crop(big, y, x, 9, 7))


# evaluation


@pytest.mark.newest
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_evaluation_keeps_the_order_and_does_not_augment(workers: int, images: Images):
    ours = list(EvaluationLoader(images, PREPROCESS, batch_size=4, workers=workers))
    assert [len(y) for _, y in ours] == [4, 4, 3]
    assert torch.cat([y for _, y in ours]).tolist() == list(range(N))
    expected = torch.stack([PREPROCESS.fit_image(images[i]) for i in range(N)])
    assert torch.equal(torch.cat([x for x, _ in ours]), expected)


# memory


def test_memory_and_files_give_identical_batches(images: Images):
    loaded = load_into_memory(images, max_bytes=10**9)
    assert loaded.is_in_memory and not images.is_in_memory
    assert loaded.names == images.names and loaded.classes == images.classes
    assert identical(batches(loaded), batches(images))
    assert identical(list(EvaluationLoader(loaded, PREPROCESS)), list(EvaluationLoader(images, PREPROCESS)))


def test_images_of_several_sizes_can_be_in_memory(images: Images):
    Image.new("RGB", (30, 9), (1, 2, 3)).save(images.pixels.paths[4])
    loaded = load_into_memory(images, max_bytes=10**9)
    assert loaded.is_in_memory and loaded[4].shape == (3, 9, 30)
    assert identical(batches(loaded), batches(images))
    assert identical(batches(loaded, workers=2), batches(images))
    subset = loaded.subset([4, 0])
    assert subset.is_in_memory and subset[0].shape == (3, 9, 30) and subset.labels.tolist() == [4, 0]


@pytest.mark.parametrize("odd", [None, 4], ids=["of one shape", "one of another"])
def test_images_are_never_in_memory_twice(odd: int | None):
    references: list[weakref.ref[torch.Tensor]] = []
    most = []

    class Watched(Sequence[torch.Tensor]):
        """Images that count how many of the tensors they returned are still referenced."""

        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> torch.Tensor:
            most.append(sum(each() is not None for each in references))
            pixels = torch.full((3, 12, 30 if i == odd else 10), i, dtype=torch.uint8)
            references.append(weakref.ref(pixels))
            return pixels

    loaded = load_into_memory(Images(Watched(), list("abcdefghijk"), np.arange(N), tuple("abcdefghijk")), 10**9)
    assert [int(loaded[i].max()) for i in range(N)] == [int(loaded[i].min()) for i in range(N)] == list(range(N))
    if odd is None:
        assert max(most) <= 1  # besides the copy in the array, only the image that was read last
        assert loaded.pixels.untyped_storage().nbytes() == N * 3 * 12 * 10
    else:
        assert loaded[odd].shape == (3, 12, 30) and loaded[0].shape == (3, 12, 10)


def test_an_error_while_scoring_a_sharded_model_leaves_no_hook():
    vit = ViT(ViTConfig(width=8, depth=1, heads=2, mlp_width=8, patch=4, image_size=8, classes=2))
    with pytest.raises(RuntimeError), pad_forward_calls(Classifier(vit, ("a", "b"), PREPROCESS), 3):
        raise RuntimeError
    assert not vit._forward_pre_hooks


def test_the_memory_limit_is_exact_to_the_byte(images: Images):
    exactly = N * 3 * 12 * 10
    assert load_into_memory(images, exactly).is_in_memory
    assert load_into_memory(images, exactly - 1) is images


def test_loading_a_far_too_large_set_stops_early(tmp_path: Path):
    images = files(tmp_path, n=200)
    ticks = []
    assert load_into_memory(images, 66 * 360, lambda: ticks.append(1)) is images  # a third of it
    assert len(ticks) == 63


def test_loading_into_memory_ticks_once_an_image_and_names_a_corrupt_file(images: Images):
    ticks = []
    load_into_memory(images, 10**9, lambda: ticks.append(1))
    assert len(ticks) == N
    images.pixels.paths[3].write_bytes(b"")
    with pytest.raises(ImageError, match=r"03\.png"):
        load_into_memory(images, 10**9)


def test_images_in_memory_need_no_workers(images: Images):
    assert default_workers(load_into_memory(images, 10**9)) == 0


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 1), (4, 1, 3), (64, 1, 8), (8, 2, 3), (8, 8, 1)])
def test_workers_share_the_cores_with_the_training_processes(images: Images, monkeypatch, cores, processes, workers):
    monkeypatch.setattr("os.cpu_count", lambda: 96)  # of the machine; the container may use fewer
    monkeypatch.setattr("vitrail.data.loader.count_cores", lambda: cores)
    assert default_workers(images, processes) == workers


def test_processes_that_evaluate_together_share_the_cores(clf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    def count_workers(reader, keys, workers):
        started.append(workers)
        return map(reader.__getitem__, keys)

    monkeypatch.setattr(loader, "count_cores", lambda: 8)
    monkeypatch.setattr(loader, "load_in_workers", count_workers)
    part = evaluate_shard(clf, files(tmp_path, n=3), World(size=4, local_size=2), 8, None, False)
    assert (part.images, part.error, started) == (3, None, [3])


def test_a_subset_keeps_pixels_names_and_labels_together(images: Images):
    for whole in (images, load_into_memory(images, 10**9)):
        subset = whole.subset([5, 2, 2])
        assert subset.names == ["05.png", "02.png", "02.png"] and subset.labels.tolist() == [5, 2, 2]
        assert all(torch.equal(subset[i], images[j]) for i, j in enumerate((5, 2, 2)))
        assert len(whole.subset([])) == 0


# augmentation


def sample_transform(augment: Augment, preprocess: Preprocess) -> Callable[[torch.Tensor], torch.Tensor]:
    """Applies an augmentation to single images, with other random numbers each time."""
    augmentation = build_augmentation(augment, preprocess)
    count = itertools.count()

    def transform(image: torch.Tensor) -> torch.Tensor:
        pixels_1CHW = augmentation.augment_image(image).unsqueeze(0)
        return augmentation.augment_batch(pixels_1CHW, np.array([next(count)]), seed=0, epoch=0)[0]

    return transform


OPTIONS = [
    Augment(),
    Augment(crop="resized"),
    Augment(crop="resized", crop_scale=0.05),
    Augment(crop="padded"),
    Augment(crop="padded", crop_padding=0.5),
    Augment(policy="randaugment"),
    Augment(policy="randaugment", policy_ops=4, policy_magnitude=30),
    Augment(policy="trivialaugment"),
    Augment(random_erasing=1.0),
    Augment(crop="padded", policy="trivialaugment", random_erasing=1.0),
]


@pytest.mark.parametrize("augment", OPTIONS, ids=lambda a: f"{a.crop}-{a.policy}-{a.random_erasing}")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_option_gives_uint8_of_the_models_shape(
    augment: Augment, channels: int, size: tuple[int, int], interpolation: str
):
    normalization = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    transform = sample_transform(augment, Preprocess(image_size=size, interpolation=interpolation, **normalization))
    torch.manual_seed(0)
    for shape in ((20, 30), (5, 5), *[(16, 16)] * 12):  # often enough that a policy draws most of its operations
        image = transform(torch.randint(0, 256, (channels, *shape), dtype=torch.uint8))
        assert image.dtype == torch.uint8 and image.shape == (channels, *size)


def half_white() -> torch.Tensor:
    """White on the left half, black on the right."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[..., :4] = 255
    return image


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {True}), (1.0, {False}), (0.5, {True, False})])
def test_flips_happen_with_the_given_probability(flip: float, expected: set[bool]):
    transform = sample_transform(Augment(flip=flip), PREPROCESS)
    assert {torch.equal(transform(half_white()), half_white()) for _ in range(60)} == expected


def test_erasing_fills_with_the_mean_color():
    preprocess = Preprocess(image_size=(16, 16), mean=(0.2, 0.4, 0.6))
    image = sample_transform(Augment(flip=0, random_erasing=1.0), preprocess)(
        torch.full((3, 16, 16), 255, dtype=torch.uint8)
    )
    colors = {tuple(color) for color in image.flatten(1).T.tolist()}
    assert colors == {(255, 255, 255), (51, 102, 153)}


def test_a_resized_crop_keeps_at_least_the_given_area():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    transform = sample_transform(Augment(flip=0, crop="resized", crop_scale=0.8), Preprocess(image_size=(64, 64)))
    spans = []
    for _ in range(30):
        image = transform(ramp)
        spans.append((int(image.max()) - int(image.min()) + 1) / 64)
    assert min(spans) > 0.75 and len(set(spans)) > 1  # 0.8 of the area with a ratio up to 4/3


def test_a_padded_crop_shifts_by_at_most_its_border():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, 8, 8] = 255
    transform = sample_transform(Augment(flip=0, crop="padded", crop_padding=0.125), Preprocess(image_size=(16, 16)))
    positions = {tuple((transform(image)[0] == 255).nonzero()[0].tolist()) for _ in range(200)}
    assert len(positions) > 10
    assert all(6 <= y <= 10 and 6 <= x <= 10 for y, x in positions)


@pytest.mark.parametrize("augment", [Augment(mixup=0.8), Augment(cutmix=1.0), Augment(mixup=0.8, cutmix=1.0)])
def test_mixing_gives_soft_targets_that_sum_to_one(augment: Augment):
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    changed = 0
    for _ in range(10):
        mixed, targets = mix_batch(augment, images, labels, 5)
        assert mixed.shape == images.shape and mixed.dtype == images.dtype
        assert targets.shape == (8, 5) and (targets >= 0).all()
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert (targets[torch.arange(8), labels] > 0).any()
        changed += not torch.equal(mixed, images)
    assert changed


def test_mixup_mixes_pixels_and_targets_by_the_same_fraction():
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2)  # channel c of image i is 1 where c == i
    mixed, targets = mix_batch(Augment(mixup=0.8), images, labels, 4)
    assert torch.allclose(mixed[:, :, 0, 0], targets)


def test_without_mixing_images_and_labels_are_unchanged():
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    same_images, same_labels = mix_batch(Augment(), images, labels, 4)
    assert same_images is images and same_labels is labels


@pytest.mark.parametrize("field", ["flip", "random_erasing"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_probabilities_must_be_between_0_and_1(field: str, value: float):
    with pytest.raises(UsageError, match=f"{field} is .* at least 0 and at most 1"):
        Augment(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", 0.0),
        ("crop_scale", 1.5),
        ("crop_padding", -0.1),
        ("crop_padding", 0.6),
        ("policy_ops", -1),
        ("policy_magnitude", 31),
        ("policy_magnitude", -1),
        ("mixup", -0.2),
        ("cutmix", -1.0),
    ],
)
def test_other_numbers_out_of_range_are_refused_by_name(field: str, value: float):
    with pytest.raises(UsageError, match=f"{field} is "):
        Augment(**{field: value})


@pytest.mark.parametrize(
    ("field", "typed", "suggested"), [("crop", "pad", "padded"), ("policy", "rand", "randaugment")]
)
def test_an_unknown_value_suggests_the_nearest_one(field: str, typed: str, suggested: str):
    with pytest.raises(UsageError, match=suggested):
        Augment(**{field: typed})
