"""Each method against a plain computation of its formula, and against other libraries."""

import copy
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from test_explain import (
    CLASSES,
    MODELS,
    WIDE,
    any_model,
    attend_functions,
    classifier,
    images,
    photos,
    random_vit,
    stack_maps,
)
from vitrail.classifier import Classifier, NonFiniteOutput
from vitrail.data.images import Images
from vitrail.errors import UsageError
from vitrail.explanation.api import explain_batch
from vitrail.explanation.attention import readout_weights
from vitrail.explanation.faithfulness import evaluate_faithfulness
from vitrail.explanation.hooks import eval_mode, record_block_inputs
from vitrail.explanation.inputs import TokenInputs, embed_images
from vitrail.explanation.libragrad import balanced_gradients
from vitrail.explanation.methods import METHOD_ALIASES, METHODS
from vitrail.explanation.recording import Record, recording
from vitrail.model.config import MlpKind, PoolKind
from vitrail.model.vit import ViT

CLASS_AWARE = [name for name, row in METHODS.items() if not row.class_blind]


def float64_classifier(**options) -> Classifier:
    clf = classifier(**options)
    clf.vit.double()
    return clf


def embed_photos(clf: Classifier, targets=None) -> TokenInputs:
    return embed_images(clf, photos(), targets or [(2, None)] * 3)


def assert_close(actual: np.ndarray | Tensor, expected: np.ndarray | Tensor, tolerance: float) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 0
    assert np.abs(actual - expected).max() <= tolerance * scale


# Attention and its gradient.


class ExplicitAttention:
    """Explicit attention with differentiable matrices, which `recording` must equal."""

    def __init__(self, vit: ViT):
        self.matrices: list[Tensor] = []
        self.modules = [*(block.attn for block in vit.blocks), *([vit.pool] if hasattr(vit.pool, "attend") else [])]

    def __enter__(self) -> "ExplicitAttention":
        self.before = [module.attend for module in self.modules]
        for module in self.modules:
            module.attend = self.attend
        return self

    def __exit__(self, *_: object) -> None:
        for module, before in zip(self.modules, self.before, strict=True):
            module.attend = before

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        matrix = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        self.matrices.append(matrix)
        return matrix @ v


@any_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_recomputed_attention_and_its_gradient_equal_explicit_ones(options, dtype, tolerance):
    clf = classifier(**options)
    clf.vit.to(dtype)
    inputs = embed_photos(clf)
    x = inputs.x_BTD.requires_grad_()
    with recording(clf.vit) as record:
        actual = inputs.logits(x)
    mixed = [record.attended[layer] for layer in sorted(record.attended)]
    actual_gradients = torch.autograd.grad(actual[:, 2].sum(), mixed)
    with ExplicitAttention(clf.vit) as explicit:
        score = inputs.logits(x)[:, 2].sum()
    gradients = torch.autograd.grad(score, explicit.matrices)
    for layer, (matrix, gradient) in enumerate(zip(explicit.matrices, gradients, strict=True)):
        recomputed = record.attention(layer) if layer < 3 else record.pool_attention
        assert_close(recomputed.detach(), matrix.detach(), tolerance)
        assert_close(record.gradient(layer, actual_gradients[layer]).detach(), gradient, tolerance)


# References, layer by layer, from the explicit matrices.


def pool_rows(vit: ViT, row_of: Tensor) -> Tensor:
    """Applies a pool without parameters to the rows of a matrix: (T, T) -> (T,)."""
    record = Record(1)
    record.queries[0] = row_of[None, None]
    return readout_weights(record, vit.config, len(row_of))[0] @ row_of


@any_model
def test_chefer_equals_its_reference(options):
    clf = float64_classifier(**options)
    inputs = embed_photos(clf)
    with ExplicitAttention(clf.vit) as explicit:
        score = inputs.logits(inputs.x_BTD.requires_grad_())[:, 2].sum()
    gradients = torch.autograd.grad(score, explicit.matrices)
    expected = []
    for image in range(3):
        relevance = torch.eye(inputs.x_BTD.shape[1], dtype=torch.float64)
        for matrix, gradient in list(zip(explicit.matrices, gradients, strict=True))[:3]:
            relevance = relevance + (matrix[image] * gradient[image]).clamp(min=0).mean(0) @ relevance
        if clf.vit.config.pool == "map":
            row = (explicit.matrices[3][image] * gradients[3][image]).clamp(min=0).mean(0)[0] @ relevance
        else:
            row = pool_rows(clf.vit, relevance - torch.eye(len(relevance)))
        expected.append(row[clf.vit.config.prefix_tokens :].detach())
    actual = explain_batch(clf, photos(), method="chefer", target=CLASSES[2])
    assert_close(stack_maps(actual).reshape(3, -1), torch.stack(expected), 1e-10)


@any_model
def test_legrad_equals_its_reference(options):
    clf = float64_classifier(**options)
    vit, inputs = clf.vit, embed_photos(clf)
    x, expected = inputs.x_BTD, torch.zeros(3, inputs.x_BTD.shape[1], dtype=torch.float64)
    for block in vit.blocks:
        with ExplicitAttention(vit) as explicit:
            x = block(x.detach().requires_grad_(), inputs.rotation)
            read = vit.pool(vit.norm(x)) if vit.config.pool == "map" else vit.norm(x).mean(dim=1)
            logits = vit.head(read)
        (gradient,) = torch.autograd.grad(logits[:, 2].sum(), explicit.matrices[:1])
        expected += gradient.clamp(min=0).mean(dim=(1, 2)) / 3
    actual = explain_batch(clf, photos(), method="legrad", target=CLASSES[2])
    assert_close(stack_maps(actual).reshape(3, -1), expected[:, vit.config.prefix_tokens :], 1e-10)


def libragrad_by_hand(vit: ViT, x: Tensor, block_inputs: list[Tensor]) -> Tensor:
    """The forward pass of a class-token GELU ViT with detached factors; fills `block_inputs`."""

    def norm(module, x):
        spread = (x.var(-1, keepdim=True, correction=0) + module.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / spread * module.weight + module.bias

    for block in vit.blocks:
        block_inputs.append(x)
        qkv = block.attn.qkv(norm(block.norm1, x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].mT / math.sqrt(8)).softmax(-1).detach()
        x = x + block.attn.proj((weights @ qkv[2]).transpose(1, 2).flatten(2))
        u = block.mlp.fc1(norm(block.norm2, x))
        x = x + block.mlp.fc2(u * (0.5 * (1 + torch.erf(u / math.sqrt(2)))).detach())
    return vit.head(norm(vit.norm, x)[:, 0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_libragrad_equals_a_backward_pass_with_detached_factors(dtype, tolerance):
    clf = classifier(prefix_tokens=2)
    clf.vit.to(dtype)
    inputs = embed_photos(clf)
    x = inputs.x_BTD.clone().requires_grad_()
    block_inputs: list[Tensor] = []
    logits = libragrad_by_hand(clf.vit, x, block_inputs)
    assert_close(logits.detach(), inputs.logits(inputs.x_BTD).detach(), tolerance)
    chance = logits.softmax(1)[:, 2]
    gradients = torch.autograd.grad((chance / (1 - chance)).log().sum(), block_inputs)
    layers = [(x * gradient).sum(-1)[:, 2:].detach() for x, gradient in zip(block_inputs, gradients, strict=True)]
    expected = sum(layers) / 3
    actual = explain_batch(clf, photos(), method="libragrad", target=CLASSES[2])
    assert_close(stack_maps(actual).reshape(3, -1), expected, tolerance)


EVERY_MODULE = {
    **MODELS,
    **{f"mlp {name}": {"mlp": name} for name in get_args(MlpKind)},
    **{f"pool {name}": {"pool": name, "prefix_tokens": 2} for name in get_args(PoolKind)},
    "mlp head": {"head": "mlp", "pool": "mean"},
    "pre-norm": {"pre_norm": True},
    "no final norm": {"final_norm": False},
}


@pytest.mark.parametrize("options", EVERY_MODULE.values(), ids=EVERY_MODULE)
def test_libragrad_maps_sum_to_the_score(options):
    """Without biases the tokens get the whole score; a module without a rule would break the sum."""
    clf = float64_classifier(**options)
    with torch.no_grad():
        for name, parameter in clf.vit.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    inputs = embed_photos(clf)
    plain = inputs.logits(inputs.x_BTD).detach()
    with balanced_gradients(clf.vit), record_block_inputs(clf.vit) as block_inputs:
        logits = inputs.logits(inputs.x_BTD.requires_grad_())
    gradients = torch.autograd.grad(logits[:, 2].sum(), block_inputs)
    assert_close(logits.detach(), plain, 1e-12)
    for x, gradient in zip(block_inputs, gradients, strict=True):  # every layer's map sums to the same score
        assert_close((x * gradient).sum((1, 2)).detach(), logits[:, 2].detach(), 1e-10)


def test_input_x_gradient_does_not_sum_to_the_score():
    """Without this the test above would prove nothing."""
    inputs = embed_photos(float64_classifier())
    x = inputs.x_BTD.requires_grad_()
    score = inputs.logits(x)[:, 2]
    (gradient,) = torch.autograd.grad(score.sum(), x)
    assert ((x * gradient).sum((1, 2)) - score).abs().min() > 0.05 * score.abs().max()


@any_model
def test_balanced_gradients_change_the_logits_by_rounding_only(options):
    vit = random_vit(**options)
    with torch.no_grad():
        outside = vit(images())
        with balanced_gradients(vit):
            inside = vit(images())
    assert (inside - outside).abs().max() <= 1e-5 * outside.abs().max()


# Comparison with other libraries on the same model.


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "prefix_tokens": 0}, {"prefix_tokens": 5}], ids=str)
def test_integrated_gradients_equal_captums_on_pixels(options):
    captum_attr = pytest.importorskip("captum.attr")
    clf = float64_classifier(**options)
    x = clf.normalize(photos())
    pixels = captum_attr.IntegratedGradients(clf.vit).attribute(x, target=2, n_steps=20)
    expected = F.avg_pool2d(pixels.sum(1, keepdim=True), 4)[:, 0] * 16
    actual = explain_batch(clf, photos(), method="integrated_gradients", target=CLASSES[2])
    assert_close(stack_maps(actual), expected.detach(), 1e-6)  # captum's steps are float32


def test_integrated_gradients_sum_to_the_difference_from_the_baseline():
    clf = classifier(pool="mean")
    gray = clf.vit(torch.zeros(1, 3, *WIDE))[0, 2]
    change = clf.vit(clf.normalize(photos()))[:, 2] - gray
    actual = stack_maps(explain_batch(clf, photos(), method="integrated_gradients", target=CLASSES[2]))
    assert np.abs(actual.sum((1, 2)) - change.detach().numpy()).max() < 0.05 * change.abs().max()


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("options", [{}, {"pool": "mean", "prefix_tokens": 0}, {"prefix_tokens": 5}], ids=str)
def test_grad_cam_equals_the_grad_cam_package(options, layer):
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    clf = classifier(**options)
    prefix = clf.vit.config.prefix_tokens

    def on_grid(x_BTD: Tensor) -> Tensor:
        return x_BTD[:, prefix:].unflatten(1, (3, 5)).permute(0, 3, 1, 2)

    with GradCAM(clf.vit, [clf.vit.blocks[layer].norm1], reshape_transform=on_grid) as cam:
        expected = cam(clf.normalize(photos()).requires_grad_(), [ClassifierOutputTarget(2)] * 3)
    actual = stack_maps(explain_batch(clf, photos(), method="gradcam", target=CLASSES[2], layer=layer))
    enlarged = scale_cam_image(
        scale_cam_image(actual, (20, 12))
    )  # as the package does, before and after its mean over layers
    assert_close(enlarged, expected, 1e-4)


# Removed patches.


def logits_with_masked_patches(vit: ViT, x: Tensor, keep: Tensor) -> Tensor:
    """The logits of a class-token ViT with attention masked to the prefix tokens and the patches in `keep`."""
    hidden = torch.ones(len(x), x.shape[-2] // 4 * x.shape[-1] // 4, dtype=torch.bool).scatter(1, keep, False)
    prefix = torch.zeros(len(x), vit.config.prefix_tokens, dtype=torch.bool)
    mask = torch.cat([prefix, hidden], dim=1)[:, None, None]

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        return (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask, -math.inf).softmax(-1) @ v

    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        block.attn.attend = attend
    return vit(x)


@pytest.mark.parametrize("name", ["cls, 1 prefix", "cls, 5 prefix", "rotary", "normed q and k"])
def test_removing_a_patch_equals_masking_it_in_attention(name):
    clf = float64_classifier(**MODELS[name])
    keep = torch.stack([torch.randperm(15, generator=torch.Generator().manual_seed(i))[:6] for i in range(3)])
    with torch.no_grad():
        actual = embed_photos(clf).logits_of_patches(keep)
        expected = logits_with_masked_patches(clf.vit, clf.normalize(photos()), keep)
        whole = clf.vit(clf.normalize(photos()))
    assert_close(actual, expected, 1e-12)
    assert (actual - whole).abs().max() > 0.01


@any_model
def test_keeping_all_patches_gives_the_same_logits(options):
    clf = float64_classifier(**options)
    with torch.no_grad():
        actual = embed_photos(clf).logits_of_patches(torch.arange(15).expand(3, -1))
        assert_close(actual, clf.vit(clf.normalize(photos())), 1e-12)


@pytest.mark.parametrize("name", ["cls, 1 prefix", "mean, 0 prefix", "map, 5 prefix", "rotary"])
def test_occlusion_is_the_drop_in_probability_without_each_patch(name):
    clf = float64_classifier(**MODELS[name])
    inputs = embed_photos(clf)
    expected = np.zeros((3, 15))
    with torch.no_grad():
        for patch in range(15):
            keep = torch.tensor([[i for i in range(15) if i != patch]] * 3)
            drop = inputs.logits(inputs.x_BTD).softmax(1) - inputs.logits_of_patches(keep).softmax(1)
            expected[:, patch] = (drop[:, 2] - drop[:, 4]).numpy()
    actual = explain_batch(clf, photos(), method="occlusion", target=(CLASSES[2], CLASSES[4]))
    assert_close(stack_maps(actual).reshape(3, -1), expected, 1e-10)


def test_rise_is_the_mean_over_random_halves_that_contain_the_patch():
    clf = float64_classifier(**MODELS["mean, 0 prefix"])
    inputs = embed_photos(clf)
    generator = torch.Generator().manual_seed(0)
    held_by: list[list[np.ndarray]] = [[] for _ in range(15)]
    values = []
    with torch.no_grad():
        for _ in range(100):
            order = torch.randperm(15, generator=generator)
            for half in (order[:7], order[7:14]):
                probability = inputs.logits_of_patches(half.expand(3, -1)).softmax(1)[:, 2].numpy()
                values.append(probability)
                for patch in half.tolist():
                    held_by[patch].append(probability)
    expected = np.stack([np.mean(each, axis=0) for each in held_by], axis=1) - np.mean(values, axis=0)[:, None]
    actual = explain_batch(clf, photos(), method="rise", target=CLASSES[2])
    assert_close(stack_maps(actual).reshape(3, -1), expected, 1e-10)


def test_with_mean_pooling_the_logit_lens_averages_to_the_logit():
    clf = float64_classifier(pool="mean", prefix_tokens=0)
    logits = clf.vit(clf.normalize(photos())).detach()
    actual = stack_maps(explain_batch(clf, photos(), method="logit_lens", target=CLASSES[1]))
    assert_close(actual.mean((1, 2)), logits[:, 1] - logits.mean(1), 1e-10)


@any_model
def test_the_logit_lens_applies_the_final_norm_pool_and_head(options):
    clf = float64_classifier(**options)
    actual = explain_batch(clf, photos(), method="logit_lens", target=CLASSES[1], layer=0)
    seen: list[Tensor] = []
    hook = clf.vit.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        clf.vit(clf.normalize(photos()))
        hook.remove()
        patch = clf.vit.norm(seen[0])[1, clf.vit.config.prefix_tokens + 7]
        logits = clf.vit.head(clf.vit.pool(patch.expand(1, clf.vit.config.prefix_tokens + 4, -1)))[0]
    assert_close(actual[1].map[1, 2:3], (logits[1] - logits.mean())[None], 1e-10)


@any_model
def test_the_map_of_a_query_is_its_row_of_the_attention_matrix(options):
    clf = classifier(**options)
    with torch.no_grad(), recording(clf.vit) as record:
        clf.vit(clf.normalize(photos()))
    prefix = clf.vit.config.prefix_tokens
    expected = record.attention(1)[:, :, prefix + 2 * 5 + 3, prefix:]
    for head, weights in ((None, expected.mean(1)), (2, expected[:, 2])):
        actual = explain_batch(clf, photos(), method="attention", layer=1, head=head, query=(2, 3))
        assert_close(stack_maps(actual).reshape(3, -1), weights, 1e-5)
    assert actual[0].question == "what the patch in row 2, column 3 attends to"


# Names.


@pytest.mark.parametrize(("old", "name"), METHOD_ALIASES.items())
def test_an_old_name_gives_the_method_of_its_new_name(old, name):
    clf = classifier()
    by_old_name, by_name = (explain_batch(clf, photos(), method=method)[0] for method in (old, name))
    assert by_old_name.method == by_name.method == name
    assert (by_old_name.map == by_name.map).all()


# Targets.


@pytest.mark.parametrize("method", CLASS_AWARE)
def test_each_image_is_explained_for_its_own_class(method):
    clf = classifier(pool="mean")
    actual = explain_batch(clf, photos(), method=method, target=["ant", ("bee", "cat"), None])
    alone = [explain_batch(clf, photos()[i : i + 1], method=method, target=each)[0]
             for i, each in enumerate(["ant", ("bee", "cat"), None])]  # fmt: skip
    for one, other in zip(actual, alone, strict=True):
        np.testing.assert_allclose(one.map, other.map, atol=1e-5 * np.abs(one.map).max())
        assert (one.label, one.against, one.predicted) == (other.label, other.against, other.predicted)
    probabilities = clf.logits(photos()).softmax(1)
    assert [actual[0].label, actual[1].label, actual[1].against] == ["ant", "bee", "cat"]
    assert actual[2].label == actual[2].predicted == CLASSES[int(probabilities[2].argmax())]
    assert actual[1].probability == pytest.approx(float(probabilities[1, 1]), abs=1e-6)


@pytest.mark.parametrize("method", CLASS_AWARE)
def test_classes_have_different_maps(method):
    clf = classifier(pool="mean")
    ant, bee = (stack_maps(explain_batch(clf, photos(), method=method, target=label)) for label in ("ant", "bee"))
    assert np.abs(ant - bee).max() > 1e-3 * np.abs(ant).max()


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "occlusion", "rise", "logit_lens"])
def test_the_map_of_a_pair_is_the_difference_of_both_maps(method):
    clf = float64_classifier()
    ant, bee, rather = (
        stack_maps(explain_batch(clf, photos(), method=method, target=target))
        for target in ("ant", "bee", ("ant", "bee"))
    )
    assert_close(rather, ant - bee, 1e-9)


def test_libragrad_maps_of_swapped_pairs_are_negatives():
    clf = float64_classifier()
    one, other = (stack_maps(explain_batch(clf, photos(), target=pair)) for pair in (("ant", "bee"), ("bee", "ant")))
    assert_close(one, -other, 1e-12)


def test_log_odds_match_the_probability():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    inputs = embed_photos(classifier())
    inputs.target_BY = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    chance = logits.softmax(1)
    expected = torch.stack([(chance[0, 1] / (1 - chance[0, 1])).log(), logits[1, 2] - logits[1, 0]])
    assert_close(inputs.log_odds(logits), expected, 1e-6)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.class_blind])
def test_class_blind_methods_ignore_the_class(method):
    clf = classifier()
    ant, bee = (explain_batch(clf, photos(), method=method, target=label) for label in ("ant", "bee"))
    assert all(explanation.class_blind for explanation in ant)
    assert (stack_maps(ant) == stack_maps(bee)).all()
    assert ant[0].question == "where the model looks"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("dgo", "the model has no class 'dgo' (did you mean dog?)"),
        (("dog", "cta"), "has no class 'cta'"),
        (("dog", "dog"), "'dog' is compared with itself"),
        (["dog", "cat"], "there are 2 targets for 3 images"),
    ],
    ids=str,
)
def test_an_unknown_target_is_refused(target, sentence):
    with pytest.raises(UsageError) as caught:
        explain_batch(classifier(), photos(), target=target)
    assert sentence in str(caught.value)


def test_a_model_without_classes_has_attention_maps_only(tmp_path):
    clf = classifier(classes=0)
    clf.classes = ()
    actual = explain_batch(clf, photos(), method="attention")[0]
    assert (actual.label, actual.to_json()["probability"]) == ("", None)
    assert actual.summary.startswith("where the model looks (attention): half")
    actual.save(tmp_path / "map.png")
    for options in ({}, {"method": "attention", "target": "cat"}):
        with pytest.raises(UsageError, match="has no classes"):
            explain_batch(clf, photos(), **options)


def test_the_temperature_changes_the_probability_and_not_a_map_of_log_odds():
    clf = classifier()
    cold = explain_batch(clf, photos())[0]
    clf.temperature = 3.0
    warm = explain_batch(clf, photos())[0]
    assert (cold.map == warm.map).all()
    assert warm.probability < cold.probability
    assert warm.probability == pytest.approx(clf.predict(photos()[0], top=1)[0].probability, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_maps_of_probabilities_are_calibrated(temperature):
    """Occlusion's drop from the printed probability, and RISE's mean over halves, are those of the classifier."""
    clf = replace(classifier(), temperature=temperature)
    pixels = photos()[:1]
    inputs = embed_images(clf, pixels, [(1, None)])
    explanation = explain_batch(clf, pixels, method="occlusion", target=clf.classes[1])[0]
    without_first = inputs.logits_of_patches(torch.arange(1, inputs.patch_count)[None]).detach()
    left = float((without_first / temperature).softmax(1)[0, 1])
    assert explanation.map.ravel()[0] == pytest.approx(explanation.probability - left, abs=1e-5)
    soft, sharp = (
        np.abs(explain_batch(replace(clf, temperature=t), pixels, method="rise")[0].map).sum() for t in (30.0, 1.0)
    )
    assert soft < sharp


# The model stays unchanged; any dtype, mode and batch works.


class Failure(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_keeps_its_exact_state(method, fails, monkeypatch):
    clf = classifier(pool="map", head="mlp", mlp="swiglu")
    vit = clf.vit.train()
    vit.blocks[1].eval()
    vit.head.requires_grad_(False)
    for parameter in vit.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}

    def state():
        modules = [
            (module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in vit.modules()
        ]
        return modules, attend_functions(vit), [(p.requires_grad, p.grad is None) for p in vit.parameters()]

    expected = state()
    if fails:

        def fail(self, logits):
            raise Failure

        monkeypatch.setattr(TokenInputs, "score", fail)
        monkeypatch.setattr(TokenInputs, "log_odds", fail)
        monkeypatch.setattr(TokenInputs, "fix_target", fail)
        if METHODS[method].class_blind:
            monkeypatch.setattr(TokenInputs, "drop_prefix", fail)
        with pytest.raises(Failure):
            explain_batch(clf, photos(), method=method)
    else:
        explain_batch(clf, photos(), method=method)
    assert state() == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())
    assert all((p.grad == 7).all() for p in vit.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_weights_give_nearly_the_same_map(method):
    clf = classifier(pool="mean")
    exact = stack_maps(explain_batch(clf, photos(), method=method, target="cat"))
    clf.vit.bfloat16()
    actual = explain_batch(clf, photos(), method=method, target="cat")
    assert actual[0].map.dtype == np.float32
    assert np.corrcoef(stack_maps(actual).ravel(), exact.ravel())[0, 1] > (
        0.9 if method in ("gradcam", "rise") else 0.97
    )


@pytest.mark.parametrize("method", METHODS)
def test_explaining_works_inside_inference_mode_and_no_grad(method):
    clf = classifier()
    expected = stack_maps(explain_batch(clf, photos(), method=method))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert (stack_maps(explain_batch(clf, photos().clone(), method=method)) == expected).all()


@pytest.mark.parametrize("method", METHODS)
def test_non_finite_weights_raise_an_error(method):
    clf = classifier()
    clf.vit.head.weight.data[2, 3] = torch.nan
    with pytest.raises(NonFiniteOutput, match="not finite"):
        explain_batch(clf, photos(), method=method)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        clf = classifier()
    with pytest.raises(UsageError, match="inference_mode.*load the model outside"):
        explain_batch(clf, photos())


def test_a_long_batch_is_split(monkeypatch):
    expected = stack_maps(
        explain_batch(classifier(), photos(7), target=[None, "ant", "bee", "cat", None, "dog", "emu"])
    )
    monkeypatch.setattr("vitrail.explanation.inputs.MAX_BATCH_TOKENS", 32)  # two images
    actual = stack_maps(explain_batch(classifier(), photos(7), target=[None, "ant", "bee", "cat", None, "dog", "emu"]))
    assert_close(actual, expected, 1e-5)


class OperatorLog(TorchDispatchMode):
    """Records the operators that ran and the size of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_the_default_uses_the_fused_kernel_and_no_attention_matrix():
    clf = classifier()
    pixels = photos(2, size=(96, 96))  # 577 tokens, 4 heads
    with OperatorLog() as watched:
        explain_batch(clf, pixels)
    assert any("scaled_dot_product" in name for name in watched.operators)
    assert watched.largest < 577 * 577  # the attention matrix of one head and one image
    with OperatorLog() as other:
        explain_batch(clf, pixels, method="chefer")
    assert any("scaled_dot_product" in name for name in other.operators)
    assert other.largest == 2 * 4 * 577 * 577  # the attention of one layer


def test_eval_mode_restores_every_mode():
    vit = random_vit().train()
    vit.blocks[0].mlp.eval()
    before = [module.training for module in vit.modules()]
    with eval_mode(vit):
        assert not any(module.training for module in vit.modules())
    assert [module.training for module in vit.modules()] == before
    with pytest.raises(Failure), eval_mode(vit):
        raise Failure
    assert [module.training for module in vit.modules()] == before


@pytest.mark.parametrize("method", ["occlusion", "rise"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_perturbation_refuses_an_image_of_one_patch(method: str, pool: str):
    clf = classifier(image_size=8, patch=8, pool=pool)
    clf = replace(clf, preprocess=replace(clf.preprocess, image_size=(8, 8)))
    with pytest.raises(UsageError, match="as one patch"):
        explain_batch(clf, photos(2, size=(8, 8)), method=method)
    with pytest.raises(UsageError, match="as one patch"):
        evaluate_faithfulness(
            clf, Images(photos(4, size=(8, 8)), list("abcd"), np.arange(4), CLASSES), methods=[method]
        )
