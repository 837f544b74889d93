"""Explains images: weights + image -> a map over the patches, with the settings that made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier, NonFiniteOutput
from vitrail.data.image_input import to_pixels
from vitrail.data.labels import SEPARATOR
from vitrail.errors import UsageError
from vitrail.explanation.explanation import Explanation
from vitrail.explanation.hooks import eval_mode
from vitrail.explanation.inputs import PatchInputs, embed_images, max_batch_size, patch_grid
from vitrail.explanation.methods import DEFAULT_METHOD, METHODS, Method, check_options, find_method
from vitrail.explanation.padding import ImageSize, content_patches
from vitrail.explanation.pixel_inputs import MAX_BATCH_IMAGES, cell_counts, split_images
from vitrail.explanation.targets import ClassTarget, Target, parse_targets
from vitrail.module_classifier import ModuleClassifier, TorchClassifier, module_of, refuse_module
from vitrail.tasks import MULTI_LABEL, REGRESSION, TASKS


def explain(
    classifier: TorchClassifier,
    image: str | Path | Tensor,
    *,
    method: str = DEFAULT_METHOD,
    target: Target = None,
    layer: int | None = None,
    head: int | None = None,
    query: tuple[int, int] | None = None,
) -> Explanation:
    """Explains the classifier's answer to one image: a file, or uint8 pixels (C, h, w) of any size.

    `target` is a class, a pair (class, other class) for "the class rather than the other", or None for the predicted
    class, the most probable of several labels, or the first of several numbers: the map of a number is the evidence for
    a higher value, and below zero for a lower one. `layer` and `head` count from 0, layers also from -1 backwards;
    without `head` the map is the mean over heads. `query` is the (row, column) of a patch whose attention is shown.

    Raises `ImageError` for an image that cannot be read, and `UsageError` for an unknown class, method, layer, head or
    patch, and for an option that the method does not take. A model that is not a ViT is explained by the methods that
    need no tokens, in cells of pixels. The model's weights, mode and gradients stay as they were.
    """
    return explain_views(classifier, image, [(layer, head)], method=method, target=target, query=query)[0]


def read_one_image(classifier: TorchClassifier, image: str | Path | Tensor) -> tuple[Tensor, ImageSize]:
    """Returns an image as a batch (1, C, H, W), and its own size; raises `UsageError` without a loaded classifier."""
    if not isinstance(classifier, Classifier | ModuleClassifier):
        raise UsageError(
            f"explain needs a loaded classifier, and this is a {type(classifier).__name__}",
            "vitrail.explain(vitrail.load(MODEL), IMAGE)",
        )
    name = str(image) if isinstance(image, str | Path) else "image"
    pixels_CHW = to_pixels(image, classifier.preprocess.source_channels, name)
    return classifier.read_image(pixels_CHW, name)[None], (pixels_CHW.shape[-2], pixels_CHW.shape[-1])


def explain_views(
    classifier: TorchClassifier,
    image: str | Path | Tensor,
    views: Sequence[tuple[int | None, int | None]],
    *,
    method: str = DEFAULT_METHOD,
    target: Target = None,
    query: tuple[int, int] | None = None,
) -> list[Explanation]:
    """Returns the explanations of one image for each (layer, head), as `explain` does.

    Attention and rollout of all of them come from one forward pass.
    """
    pixels_1CHW, size = read_one_image(classifier, image)
    by_view = explain_batch_views(
        classifier, pixels_1CHW, views, method=method, target=target, query=query, sizes=[size]
    )
    return [explanations[0] for explanations in by_view]


def explain_batch(
    classifier: TorchClassifier,
    pixels_BCHW: Tensor,
    *,
    method: str = DEFAULT_METHOD,
    target: Target | Sequence[Target] = None,
    layer: int | None = None,
    head: int | None = None,
    query: tuple[int, int] | None = None,
    sizes: Sequence[ImageSize] | None = None,
) -> list[Explanation]:
    """Returns an explanation for each image of a batch of uint8 pixels (B, C, H, W) of the model's size.

    `target` is one target for all images, or a list with one for each. `sizes` are the heights and widths that the
    images had before they were fitted: they say what is padding, which is else found in the pixels. The other options
    and the errors are those of `explain`. Long batches are split, so memory does not grow with the batch.
    """
    views = [(layer, head)]
    return explain_batch_views(classifier, pixels_BCHW, views, method=method, target=target, query=query, sizes=sizes)[
        0
    ]


def explain_with_padding(
    classifier: TorchClassifier,
    pixels_BCHW: Tensor,
    *,
    method: str = DEFAULT_METHOD,
    target: Target | Sequence[Target] = None,
) -> list[Explanation]:
    """Returns what `explain_batch` does, with the values on padding, which an exported graph has too."""
    sizes = [classifier.preprocess.fitted_size] * len(pixels_BCHW)  # images of this size are not padded
    return explain_batch(classifier, pixels_BCHW, method=method, target=target, sizes=sizes)


def explain_batch_views(
    classifier: TorchClassifier,
    pixels_BCHW: Tensor,
    views: Sequence[tuple[int | None, int | None]],
    *,
    method: str,
    target: Target | Sequence[Target],
    query: tuple[int, int] | None,
    sizes: Sequence[ImageSize] | None = None,
) -> list[list[Explanation]]:
    """Returns what `explain_batch` does for each (layer, head)."""
    chosen = find_method(method)
    if isinstance(classifier, ModuleClassifier):
        require_no_tokens(chosen, classifier)
        config, size = None, MAX_BATCH_IMAGES
        grid = cell_counts(pixels_BCHW.shape[-2], pixels_BCHW.shape[-1])
    elif isinstance(classifier, Classifier):
        classifier.require_plain_weights("explain")
        config, grid = classifier.vit.config, patch_grid(classifier, pixels_BCHW)
        size = max_batch_size(grid[0] * grid[1])
    else:  # the types exclude it, callers may not check them
        raise refuse_module(f"a {type(classifier).__name__}")
    options = [check_options(chosen, config, grid, layer, head, query) for layer, head in views]
    if target is not None or not chosen.class_blind:
        classifier.require_classes()
    targets = parse_targets(classifier.classes, target, len(pixels_BCHW))
    if classifier.task == REGRESSION:
        targets = [choose_number(each) for each in targets]
    explanations: list[list[Explanation]] = [[] for _ in views]
    for start in range(0, len(pixels_BCHW), size):
        pixels, batch_targets = pixels_BCHW[start : start + size], targets[start : start + size]
        batch_sizes = None if sizes is None else sizes[start : start + size]
        content_Bhw = content_patches(pixels.cpu(), classifier.preprocess, grid, batch_sizes)
        with eval_mode(module_of(classifier)), torch.inference_mode(False):
            inputs = make_inputs(classifier, pixels, batch_targets)
            results = [chosen.run(inputs, **arguments) for arguments in options]
        for (layer, head), explained, (map_BP, logits_BY) in zip(views, explanations, results, strict=True):
            if not (logits_BY.isfinite().all() and map_BP.isfinite().all()):
                raise NonFiniteOutput(
                    "the model's outputs are not finite numbers", "its weights are damaged; train it again"
                )
            layer_index = None
            if config is not None and "layer" in chosen.options:
                layer_index = (-1 if layer is None else layer) % config.depth
            settings = {"method": chosen.name, "layer": layer_index, "head": head, "query": query}
            map_Bhw = map_BP.detach().view(-1, *grid)
            explained += make_explanations(classifier, pixels, map_Bhw, content_Bhw, logits_BY, batch_targets, settings)
    return explanations


def make_inputs(classifier: TorchClassifier, pixels_BCHW: Tensor, targets: Sequence[ClassTarget | None]) -> PatchInputs:
    """Returns a batch as the methods get it: embedded by a ViT, or as cells of pixels."""
    if isinstance(classifier, ModuleClassifier):
        return split_images(classifier, pixels_BCHW, targets)
    return embed_images(classifier, pixels_BCHW, targets)


def require_no_tokens(method: Method, classifier: ModuleClassifier) -> None:
    """Raises `UsageError` for a method that a model without tokens cannot have."""
    if method.needs_tokens:
        able = [each.name for each in METHODS.values() if not each.needs_tokens]
        raise UsageError(
            f"method {method.name} needs the tokens of a ViT, and {classifier!r} has none",
            f"methods for any model: {', '.join(able)}",
        )


def choose_number(target: ClassTarget | None) -> ClassTarget:
    """Returns the explained number, the first by default; raises `UsageError` for a comparison of two."""
    number, against = target or (0, None)
    if against is not None:
        raise UsageError("two numbers are not compared: their units differ", "name one number")
    return number, None


def make_explanations(
    classifier: TorchClassifier,
    pixels_BCHW: Tensor,
    map_Bhw: Tensor,
    content_Bhw: Tensor,
    logits_BY: Tensor,
    targets: Sequence[ClassTarget | None],
    settings: dict[str, Any],
) -> list[Explanation]:
    """Returns the maps of a batch with classes, probabilities (at the classifier's temperature) and settings."""
    classes = classifier.classes or ("",) * logits_BY.shape[1]
    probabilities_BY = TASKS[classifier.task].to_probabilities(logits_BY / classifier.temperature)
    numbers_BY = classifier.finish(logits_BY) if classifier.task == REGRESSION else None
    if not classifier.classes or numbers_BY is not None:
        probabilities_BY = torch.full_like(logits_BY, torch.nan)
    explanations: list[Explanation] = []
    map_Bhw, share_B = blank_padding(map_Bhw.cpu(), content_Bhw)
    pictures_BCHW = classifier.preprocess.to_picture(pixels_BCHW.cpu())
    for i, (target, predicted) in enumerate(zip(targets, logits_BY.argmax(dim=1).tolist(), strict=True)):
        label, against = target or (predicted, None)
        explanations.append(
            Explanation(
                map=map_Bhw[i].numpy(),
                label=classes[label],
                probability=float(probabilities_BY[i, label]),
                image=pictures_BCHW[i].permute(1, 2, 0).numpy(),
                predicted=describe_answer(classifier, logits_BY[i], classes[predicted]),
                number=None if numbers_BY is None else float(numbers_BY[i, label]),
                against=None if against is None else classes[against],
                content=None if content_Bhw[i].all() else content_Bhw[i].numpy(),
                padding_share=float(share_B[i]),
                **settings,
            )
        )
    return explanations


def blank_padding(map_Bhw: Tensor, content_Bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the maps with zeros where there is padding, and its share of the positive values, (B,)."""
    positive_Bhw = map_Bhw.clamp(min=0)
    total_B = positive_Bhw.sum(dim=(1, 2))
    share_B = (positive_Bhw * ~content_Bhw).sum(dim=(1, 2)) / total_B.clamp(min=torch.finfo(total_B.dtype).tiny)
    return map_Bhw.masked_fill(~content_Bhw, 0), share_B


def describe_answer(classifier: TorchClassifier, logits_Y: Tensor, best: str) -> str:
    """Returns the predicted class, or the predicted labels or numbers as a text."""
    if classifier.task == REGRESSION:
        numbers = classifier.answers.name_numbers(classifier.finish(logits_Y))
        return ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
    if classifier.task != MULTI_LABEL:
        return best
    return SEPARATOR.join(each.label for each in classifier.answers.predict(logits_Y / classifier.temperature))
