"""Recorded attention against an explicit computation, the maps made of it, and their figures."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.evaluation.figures import draw_confusion_matrix
from vitrail.explanation.api import explain_batch, explain_views
from vitrail.explanation.explanation import Explanation
from vitrail.explanation.figures import save_gallery, save_heads
from vitrail.explanation.libragrad import balanced_gradients
from vitrail.explanation.methods import METHODS
from vitrail.explanation.recording import Record
from vitrail.explanation.render import overlay_map, scale_map
from vitrail.model.attention import attend
from vitrail.model.config import Learned, Rotary, ViTConfig
from vitrail.model.vit import ViT

WIDE = (12, 20)  # 3 x 5 patches of 4 pixels
CLASSES = ("ant", "bee", "cat", "dog", "emu")


def random_vit(**options) -> ViT:
    """A tiny ViT whose attention is far from uniform."""
    torch.manual_seed(0)
    base = dict(width=32, depth=3, heads=4, mlp_width=64, patch=4, image_size=WIDE, classes=5)
    vit = ViT(ViTConfig(**{**base, **options})).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return vit


def classifier(**options) -> Classifier:
    vit = random_vit(**options)
    gray = vit.config.channels == 1
    middle = (0.5,) * (1 if gray else 3)
    return Classifier(vit, CLASSES, Preprocess(image_size=WIDE, mean=middle, std=middle))


def images(batch: int = 3, size: tuple[int, int] = WIDE) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def photos(batch: int = 3, channels: int = 3, size: tuple[int, int] = WIDE) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8, generator=generator)


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# Attention computed from the inputs of the blocks; only the weights come from the model.


def layer_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return centred / spread * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def rotate_by_hand(x: np.ndarray, config: ViTConfig, h: int, w: int) -> np.ndarray:
    """Rotary positions: channel i and i + K/2 are a complex number; each pair is rotated by its (row, column)."""
    K = x.shape[-1]
    pairs = x[..., : K // 2] + 1j * x[..., K // 2 :]
    frequency = 2 * math.pi / config.position.base ** (np.arange(K // 4) / (K // 4))
    for index in range(h * w):
        y, x_ = (2 * (index // w) + 1) / h - 1, (2 * (index % w) + 1) / w - 1
        turn = np.exp(1j * np.concatenate([y * frequency, x_ * frequency]))
        pairs[:, :, config.prefix_tokens + index] *= turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attention_by_hand(vit: ViT, x: Tensor) -> list[np.ndarray]:
    """Attention (B, N, T, T) of each layer in float64; the last entry is that of attention pooling, if any."""
    inputs: list[Tensor] = []
    watched = [*vit.blocks, vit.pool]
    hooks = [module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for module in watched]
    with torch.no_grad():
        vit(x)
    for hook in hooks:
        hook.remove()
    heads, h, w = vit.config.heads, *(side // vit.config.patch for side in x.shape[-2:])

    def by_head(tokens: np.ndarray) -> np.ndarray:
        return tokens.reshape(*tokens.shape[:2], heads, -1).swapaxes(1, 2)

    actual = []
    for block, args in zip(vit.blocks, inputs, strict=False):
        qkv = block.attn.qkv
        bias = 0 if qkv.bias is None else qkv.bias.detach().numpy()
        projected = layer_norm(args.double().numpy(), block.norm1) @ qkv.weight.detach().numpy().T + bias
        q, k = (by_head(part) for part in np.split(projected, 3, axis=-1)[:2])
        if vit.config.qk_norm:
            q, k = layer_norm(q, block.attn.q_norm), layer_norm(k, block.attn.k_norm)
        if isinstance(vit.config.position, Rotary):
            q, k = rotate_by_hand(q, vit.config, h, w), rotate_by_hand(k, vit.config, h, w)
        actual.append(softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])))
    if vit.config.pool == "map":
        pool, tokens = vit.pool, inputs[-1].double().numpy()
        q = (pool.query @ pool.q.weight.T + pool.q.bias).detach().double().numpy()[None].repeat(len(x), axis=0)
        k = tokens @ pool.kv.weight[:32].detach().numpy().T + pool.kv.bias[:32].detach().numpy()
        actual.append(softmax(by_head(q) @ by_head(k).swapaxes(-1, -2) / math.sqrt(32 // heads)))
    return actual


MODELS = {
    **{
        f"{pool}, {prefix} prefix": {"pool": pool, "prefix_tokens": prefix}
        for pool in ("cls", "mean", "map")
        for prefix in (0, 1, 5)
        if (pool, prefix) != ("cls", 0)
    },
    "normed q and k": {"qk_norm": True},
    "rotary": {"position": Rotary(), "prefix_tokens": 5},
    "rotary, normed, mean": {"position": Rotary(), "qk_norm": True, "pool": "mean", "prefix_tokens": 0},
    "no bias, layer scale, swiglu": {"qkv_bias": False, "layer_scale": 0.5, "mlp": "swiglu"},
}
any_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


@any_model
@pytest.mark.parametrize("size", [WIDE, (16, 16)], ids=["3x5", "4x4"])
def test_recorded_attention_equals_attention_written_out(options, size):
    vit, x = random_vit(**options), images(size=size)
    expected = attention_by_hand(vit, x)
    with torch.no_grad(), vitrail.recording(vit) as record:
        vit(x)
    tokens = vit.config.prefix_tokens + size[0] * size[1] // 16
    for layer in range(3):
        actual = record.attention(layer)
        assert actual.shape == (3, 4, tokens, tokens)
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), expected[layer], atol=1e-5)
        np.testing.assert_allclose(actual.sum(-1).numpy(), 1, atol=1e-5)
        assert actual.std(-1).mean() > 0.02  # far from uniform, so that an error would be visible
        assert torch.equal(record.attention(layer - 3), actual)
    if vit.config.pool == "map":
        assert record.pool_attention.shape == (3, 4, 1, tokens)
        np.testing.assert_allclose(record.pool_attention.numpy(), expected[3], atol=1e-5)
    else:
        assert record.pool_attention is None


@any_model
def test_recorded_attention_in_bf16_is_the_exact_softmax_of_the_bf16_queries_and_keys(options):
    """The expected attention comes from the queries and keys that the kernel receives."""
    vit = random_vit(**options).bfloat16()
    seen: list[Tensor] = []
    attention = vit.blocks[1].attn
    attention.attend = lambda q, k, v, dropout: seen.extend((q, k)) or attend(q, k, v, dropout)
    with torch.no_grad(), vitrail.recording(vit) as record:
        logits = vit(images().bfloat16())
    q, k = (tensor.double() for tensor in seen)
    assert seen[0].dtype == logits.dtype == torch.bfloat16
    expected = torch.einsum("bntk,bnsk->bnts", q, k).div(math.sqrt(8)).softmax(-1)
    actual = record.attention(1)
    assert actual.dtype == torch.float32
    assert max_difference(actual.double(), expected) < 1e-5
    if not options.get("qk_norm") and not isinstance(vit.config.position, Rotary):
        exact = random_vit(**options)
        assert max_difference(actual.double(), torch.from_numpy(attention_by_hand(exact, images())[1])) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_first_layer_attention_in_any_dtype_is_close_to_float64(dtype):
    vit = random_vit()
    expected = torch.from_numpy(attention_by_hand(vit, images())[0])
    with torch.no_grad(), vitrail.recording(vit.to(dtype)) as record:
        vit(images().to(dtype))
    assert max_difference(record.attention(0).double(), expected) < (0.1 if dtype == torch.bfloat16 else 1e-5)


def test_recording_works_under_autocast():
    """The recorded attention is float32 also under autocast."""
    vit = random_vit()
    expected = torch.from_numpy(attention_by_hand(vit, images())[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), vitrail.recording(vit) as record:
        vit(images())
        inside = record.attention(0)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, record.attention(0))
    assert max_difference(inside.sum(-1), torch.ones(3, 4, 16)) < 1e-5
    assert max_difference(inside.double(), expected) < 0.1


@pytest.mark.parametrize(
    "rows", [0, 5, -1, slice(1, None), slice(None, None, 3), [0, 7, 2], (4, 4), range(2, 5)], ids=str
)
def test_selected_rows_equal_rows_of_the_full_attention(rows):
    vit = random_vit()
    with torch.no_grad(), vitrail.recording(vit) as record:
        vit(images())
    whole = record.attention(1).numpy()
    numbers = [rows] if isinstance(rows, int) else rows if isinstance(rows, slice) else list(rows)
    np.testing.assert_allclose(record.attention(1, rows=rows).numpy(), whole[:, :, numbers], atol=1e-6)


@any_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recording_leaves_the_logits_bit_identical(options, dtype):
    vit, x = random_vit(**options).to(dtype), images().to(dtype)
    with torch.no_grad():
        outside = vit(x)
        with vitrail.recording(vit):
            inside = vit(x)
        assert torch.equal(inside, outside)
        assert torch.equal(vit(x), outside)


def attend_functions(vit: ViT) -> list:
    return [module.attend for module in vit.modules() if hasattr(module, "attend")]


def test_recording_restores_the_model():
    vit = random_vit(pool="map")
    with vitrail.recording(vit) as record:
        assert len(attend_functions(vit)) == 4
        assert attend not in attend_functions(vit)
    assert attend_functions(vit) == [attend] * 4
    vit(images())
    with pytest.raises(UsageError, match="nothing is recorded"):
        record.attention()


def test_an_exception_inside_restores_the_model():
    vit = random_vit(pool="map")
    with pytest.raises(ValueError, match="does not divide"), vitrail.recording(vit):
        vit(images(size=(12, 21)))
    with pytest.raises(ZeroDivisionError), vitrail.recording(vit):
        raise ZeroDivisionError
    assert attend_functions(vit) == [attend] * 4


def test_the_record_holds_the_last_call():
    vit, x = random_vit(), images()
    with torch.no_grad(), vitrail.recording(vit) as record:
        vit(x[:1])
        first = record.attention(2)
        vit(x[1:])
    assert first.shape[0] == 1
    assert record.attention(2).shape[0] == 2
    np.testing.assert_allclose(record.attention(2).numpy(), attention_by_hand(vit, x[1:])[2], atol=1e-5)


def test_recordings_nest():
    vit = random_vit()
    with torch.no_grad(), vitrail.recording(vit) as outer:
        with vitrail.recording(vit) as inner:
            vit(images())
        assert torch.equal(inner.attention(), outer.attention())
        vit(images(batch=1))
    assert len(inner.attention()) == 3
    assert len(outer.attention()) == 1


@pytest.mark.parametrize("inside", [vitrail.recording, balanced_gradients])
def test_threads_record_one_after_the_other(inside):
    vit, entered, left = random_vit(pool="map"), threading.Event(), []

    def look() -> None:
        entered.set()
        with inside(vit):
            left.append("second")

    second = threading.Thread(target=look)
    with inside(vit):
        second.start()
        entered.wait()
        second.join(0.2)
        left.append("first")
    second.join()
    assert left == ["first", "second"]
    assert attend_functions(vit) == [attend] * 4
    assert not any("forward" in vars(module) for module in vit.modules())


def test_calls_of_another_thread_are_not_recorded():
    vit, x = random_vit(), images()
    with torch.no_grad(), vitrail.recording(vit) as record:
        vit(x)
        mine = record.attention()
        other = threading.Thread(target=vit, args=[x[:1]])
        other.start()
        other.join()
        assert torch.equal(record.attention(), mine)


@pytest.mark.parametrize("recompute", [False, True])
def test_recording_leaves_gradients_unchanged(recompute):
    vit, gradients = random_vit(drop_path=0.2, attention_dropout=0.1).train(), []
    vit.gradient_checkpointing = recompute
    for record_it in (False, True):
        torch.manual_seed(0)
        vit.zero_grad()
        if record_it:
            with vitrail.recording(vit) as record:
                loss = vit(images()).square().mean()
        else:
            loss = vit(images()).square().mean()
        loss.backward()
        gradients.append([p.grad.clone() for p in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert max_difference(record.attention(0).sum(-1), torch.ones(3, 4, 16)) < 1e-5


def test_recorded_attention_can_be_differentiated():
    vit = random_vit()
    with vitrail.recording(vit) as record:
        vit(images())
        record.attention(1, rows=0)[..., 3].sum().backward()
    assert vit.blocks[1].attn.qkv.weight.grad.abs().sum() > 0
    assert vit.prefix.grad.abs().sum() > 0
    assert vit.blocks[1].attn.qkv.weight.grad[64:].abs().sum() == 0  # attention does not depend on the values
    assert vit.blocks[2].attn.qkv.weight.grad is None


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_an_unknown_layer_is_refused(layer):
    vit = random_vit(pool="map")
    with torch.no_grad(), vitrail.recording(vit) as record:
        vit(images())
    with pytest.raises(UsageError, match=f"there is no layer {layer}.*from 0 to 2"):
        record.attention(layer)


def test_reading_a_record_before_any_call_is_refused():
    with vitrail.recording(random_vit()) as record, pytest.raises(UsageError, match="call the model inside"):
        record.attention(0)
    assert record.pool_attention is None


# Maps, computed in numpy from the explicit attention above.


def pool_weights(config: ViTConfig, tokens: int) -> np.ndarray:
    """The weight of each token in the pooled vector, for pools without parameters."""
    counts = np.zeros(tokens)
    if config.pool == "cls":
        counts[0] = 1
    else:
        counts[config.prefix_tokens :] = 1 / (tokens - config.prefix_tokens)
    return counts


def to_grid(weights_BT: np.ndarray, config: ViTConfig) -> np.ndarray:
    return weights_BT[:, config.prefix_tokens :].reshape(-1, 3, 5)


def stack_maps(explanations: list[Explanation]) -> np.ndarray:
    return np.stack([explanation.map for explanation in explanations])


@any_model
@pytest.mark.parametrize("head", [None, 0, 3])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_attention_map_is_what_the_pooled_tokens_attend_to(options, head, layer):
    clf = classifier(**options)
    config, by_hand = clf.vit.config, attention_by_hand(clf.vit, clf.preprocess.normalize(photos()))
    if config.pool == "map":
        counts_BT = by_hand[3][:, :, 0].mean(1)
    else:
        counts_BT = np.broadcast_to(pool_weights(config, by_hand[0].shape[-1]), (3, by_hand[0].shape[-1]))
    weights_BNT = np.einsum("bt,bnts->bns", counts_BT, by_hand[:3][layer])
    expected = weights_BNT.mean(1) if head is None else weights_BNT[:, head]
    actual = explain_batch(clf, photos(), method="attention", layer=layer, head=head)
    np.testing.assert_allclose(stack_maps(actual), to_grid(expected, config), atol=1e-5)


@any_model
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_rollout_multiplies_attention_and_residual_of_all_layers(options, layer):
    clf = classifier(**options)
    config, by_hand = clf.vit.config, attention_by_hand(clf.vit, clf.preprocess.normalize(photos()))
    expected = []
    for image in range(3):
        mixed = np.eye(by_hand[0].shape[-1])
        for attention in by_hand[: layer % 3 + 1]:
            mixed = (attention[image].mean(0) / 2 + np.eye(len(mixed)) / 2) @ mixed
        counts = by_hand[3][image, :, 0].mean(0) if config.pool == "map" else pool_weights(config, len(mixed))
        expected.append(counts @ mixed)
    actual = explain_batch(clf, photos(), method="rollout", layer=layer)
    np.testing.assert_allclose(stack_maps(actual), to_grid(np.stack(expected), config), atol=1e-5)


@pytest.mark.parametrize("method", ["attention", "rollout"])
@pytest.mark.parametrize("pool", ["mean", "map"])
def test_without_prefix_tokens_a_map_sums_to_one(method, pool):
    clf = classifier(pool=pool, prefix_tokens=0, position=Learned())
    for layer in range(-3, 3) if pool == "mean" or method == "rollout" else (-1, 2):
        for explanation in explain_batch(clf, photos(), method=method, layer=layer):
            assert explanation.map.sum() == pytest.approx(1, abs=1e-5)
            assert (explanation.map >= 0).all()


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_with_prefix_tokens_a_map_sums_to_the_attention_of_patches(method):
    for explanation in explain_batch(classifier(prefix_tokens=5), photos(), method=method):
        assert 0 < explanation.map.sum() < 0.99


@any_model
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_the_same_maps_as_single_images(options, method):
    clf = classifier(**options)
    together = explain_batch(clf, photos(), method=method)
    for i, explanation in enumerate(together):
        alone = explain_batch(clf, photos()[i : i + 1], method=method)[0]
        np.testing.assert_allclose(alone.map, explanation.map, atol=1e-5)
        assert alone.label == explanation.label
        assert alone.probability == pytest.approx(explanation.probability, abs=1e-5)
        assert (alone.image == photos()[i].permute(1, 2, 0).numpy()).all()


def test_another_image_size_gives_another_grid():
    actual = explain_batch(classifier(), photos(size=(20, 12)), method="attention")
    assert stack_maps(actual).shape == (3, 5, 3)


def test_the_attention_map_peaks_at_the_patch_that_the_class_token_attends_to():
    """Rows and columns are not swapped: attention that is set up to find a bright patch peaks at that patch."""
    clf = classifier(depth=1)
    vit, block = clf.vit, clf.vit.blocks[0]
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        block.norm1.weight.fill_(1)
        vit.prefix[0, 0] = 1  # channel 0 is 1 for the class token, channel 1 is the brightness
        vit.patch_embed.proj.weight[1] = 1
        block.attn.qkv.weight[:32, 0] = 1
        block.attn.qkv.weight[32:64, 1] = 1
    pixels = torch.full((1, 3, *WIDE), 127, dtype=torch.uint8)
    pixels[:, :, 4:8, 12:16] = 255
    actual = explain_batch(clf, pixels, method="attention")[0].map
    assert np.unravel_index(actual.argmax(), actual.shape) == (1, 3)


def test_an_explanation_has_the_settings_that_made_it():
    clf = classifier()
    probabilities = clf.logits(photos(1))[0].softmax(0)
    actual = explain_batch(clf, photos(1), method="attention", layer=-2, head=3)[0]
    assert actual.label == CLASSES[int(probabilities.argmax())]
    assert actual.probability == pytest.approx(probabilities.max().item(), abs=1e-6)
    assert (actual.method, actual.layer, actual.head, actual.class_blind) == ("attention", 1, 3, True)
    document = json.loads(json.dumps(actual.to_json()))
    np.testing.assert_allclose(document.pop("map"), actual.map, atol=1e-6)
    assert document == {
        "label": actual.label,
        "probability": actual.probability,
        "predicted": actual.label,
        "against": None,
        "method": "attention",
        "layer": 1,
        "head": 3,
        "query": None,
        "class_blind": True,
        "signed": False,
        "cost": "1 forward",
    }


@pytest.mark.parametrize("method", METHODS)
def test_explaining_does_not_change_the_model(method):
    clf = classifier(pool="map")
    vit = clf.vit
    vit.norm.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    requires_grad = [p.requires_grad for p in vit.parameters()]
    explain_batch(clf, photos(), method=method)
    after = vit.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in vit.parameters()] == requires_grad
    assert attend_functions(vit) == [attend] * 4
    assert not vit.training
    assert not any(vit._forward_hooks.values())
    vit(images()).sum().backward()  # training still works
    assert vit.prefix.grad is not None


def test_a_file_and_its_pixels_get_the_same_map(tmp_path):
    clf, pixels = classifier(), photos(1)[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    by_path, by_pixels = vitrail.explain(clf, tmp_path / "photo.png"), vitrail.explain(clf, pixels)
    assert (by_path.map == by_pixels.map).all()
    assert (by_path.image == by_pixels.image).all()
    assert (by_path.map == explain_batch(clf, pixels[None])[0].map).all()


def test_an_image_of_another_size_is_preprocessed():
    actual = vitrail.explain(classifier(), photos(1, size=(31, 17))[0], method="rollout")
    assert actual.map.shape == (3, 5)
    assert actual.image.shape == (12, 20, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "attenton"}, "there is no method 'attenton' (did you mean attention?)"),
        ({"method": "attention", "layer": 3}, "there is no layer 3 (the model has 3, from 0 to 2)"),
        ({"method": "logit_lens", "layer": -4}, "there is no layer -4"),
        ({"method": "rollout", "layer": 7}, "there is no layer 7"),
        ({"method": "attention", "head": 4}, "there is no head 4 (the model has 4, from 0 to 3)"),
        ({"method": "attention", "head": -1}, "there is no head -1"),
        ({"method": "rollout", "head": 0}, "method rollout has no option head (methods with it: attention)"),
    ],
    ids=str,
)
def test_an_unknown_method_layer_or_head_is_refused(options, sentence):
    with pytest.raises(UsageError) as caught:
        vitrail.explain(classifier(), photos(1)[0], **options)
    assert sentence in str(caught.value)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png"):
        vitrail.explain(classifier(), tmp_path / "text.png")


# Figures.


def read_png(path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_is_saved_as_a_picture(tmp_path, channels, method):
    actual = vitrail.explain(classifier(channels=channels), photos(1, channels)[0], method=method)
    path = actual.save(str(tmp_path / "new folder" / "map.png"))
    assert path == tmp_path / "new folder" / "map.png"
    assert len(np.unique(read_png(path))) > 50  # not empty
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def make_explanation(**changes) -> Explanation:
    return replace(explain_batch(classifier(), photos(1), method="attention")[0], **changes)


@pytest.mark.parametrize(("name", "start"), [("map", b"\x89PNG"), ("map.PNG", b"\x89PNG"), ("map.svg", b"<?xml")])
def test_the_suffix_decides_the_format_and_png_is_the_default(tmp_path, name, start):
    make_explanation().save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(start)


def test_an_unknown_picture_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"map\.docx .*use \.png"):
        make_explanation().save(tmp_path / "map.docx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["$5 and $6", r"$\frac$ $^$", "a_b^c", "50%", "<b>&amp;", ""])
def test_any_label_can_be_drawn(tmp_path, label):
    """Class names can contain any text, also the syntax of formulas."""
    actual = make_explanation(label=label, predicted=label, method="libragrad")
    for number, save in enumerate((save_heads, lambda some, path: save_gallery(some, [label], path))):
        read_png(save([actual], tmp_path / f"{number}.png"))
    read_png(actual.save(tmp_path / "single.png"))
    draw_confusion_matrix(np.eye(2, dtype=int), (label, "other"), tmp_path / "confusion.png")
    read_png(tmp_path / "confusion.png")


@pytest.mark.parametrize("heads", [1, 4, 7])
def test_the_heads_of_a_layer_are_saved_as_one_picture(tmp_path, heads):
    actual = [make_explanation(head=head) for head in range(heads)]
    assert save_heads(actual, tmp_path / "heads.png") == tmp_path / "heads.png"
    assert len(np.unique(read_png(tmp_path / "heads.png"))) > 50


def test_a_gallery_marks_mistakes(tmp_path):
    actual = [make_explanation(label="ant") for _ in range(7)]
    assert save_gallery(actual, ["ant"] * 7, tmp_path / "right.png") == tmp_path / "right.png"
    save_gallery(actual, ["ant"] * 6 + ["bee"], tmp_path / "one wrong.png")
    right, wrong = read_png(tmp_path / "right.png"), read_png(tmp_path / "one wrong.png")

    def red(picture: np.ndarray) -> int:
        return (picture == (0xB0, 0x30, 0x00)).all(-1).sum()

    assert red(right) == 0
    assert red(wrong) > 0


def test_the_overlay_is_bright_where_relevance_is_high_and_shows_the_image():
    weights = np.zeros((3, 5), np.float32)
    weights[1, 3] = 1.0
    image = np.full((12, 20, 3), 100, np.uint8)
    image[:6] = 200
    shown = overlay_map(make_explanation(map=weights, image=image))
    assert shown.shape == (12, 20, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1
    brightness = shown.sum(-1)
    inside, outside = brightness[4:8, 12:16], brightness[4:8, 16:20]
    assert (inside > outside + 0.3).all()
    assert (np.ptp(inside, axis=1) < 1e-9).all()  # one color per patch
    assert brightness[5, 0] > brightness[6, 0] + 0.1  # the image shows through


def test_scaling_handles_one_extreme_patch_and_a_constant_map():
    map_hw = np.linspace(0, 1, 400).reshape(20, 20)
    loud = map_hw.copy()
    loud[3, 3] = 1000.0
    assert np.abs(scale_map(loud) - scale_map(map_hw)).max(initial=0, where=loud < 1000) < 0.02
    assert scale_map(loud).max() == 1
    assert scale_map(map_hw).min() == 0
    assert (scale_map(np.full((3, 5), 0.2)) == 0).all()


def test_an_empty_record_is_refused():
    with pytest.raises(UsageError, match="nothing is recorded"):
        Record(depth=2).attention(1)


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_the_maps_of_all_layers_come_from_one_forward_pass(method: str, run: vitrail.Run, colors: Path):
    image = next(colors.glob("test/red/*.png"))
    views = [(layer, head) for layer in (0, 1, -1) for head in ((None, 0, 1) if method == "attention" else (None,))]
    passes = []
    hook = run.classifier.vit.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        together = explain_views(run.classifier, image, views, method=method)
        assert len(passes) == 1
    finally:
        hook.remove()
    for (layer, head), explanation in zip(views, together, strict=True):
        alone = vitrail.explain(run.classifier, image, method=method, layer=layer, head=head)
        assert np.array_equal(explanation.map, alone.map) and explanation.to_json() == alone.to_json()


@pytest.mark.parametrize("explain", [vitrail.explain, lambda *pair: explain_views(*pair, [(None, None)])])
def test_a_name_instead_of_a_classifier_is_refused(explain):
    with pytest.raises(UsageError, match="needs a loaded classifier, and this is a str") as error:
        explain("cifar10-small", torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert "vitrail.load" in str(error.value.hint)
