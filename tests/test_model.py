"""The ViT: parity with other people's, its config, positions, dropout and start."""

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import GluMlp
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.attention import attend, attention_weights
from vitrail.model.block import DropPath
from vitrail.model.config import Learned, NoPosition, Rotary, SinCos, ViTConfig
from vitrail.model.init import initialize
from vitrail.model.pool import AttentionPool
from vitrail.model.position import LearnedEmbedding, make_position
from vitrail.model.vit import ViT
from vitrail.weights.config_json import config_from_json, config_to_json, position_from_json

TINY = dict(width=32, depth=3, heads=4, mlp_width=64, patch=4, image_size=16, classes=5)
WIDE = (12, 20)  # a grid of 3 x 5
POSITIONS = [Learned(), SinCos(), Rotary(), NoPosition()]


def initialised(vit: ViT, **options: object) -> ViT:
    initialize(vit, **options)
    return vit


def config(**options) -> ViTConfig:
    return ViTConfig(**{**TINY, **options})


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with no parameter left at a start that would hide a mistake (zero, one)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# Parity: the same weights under our names give the same logits.


def ours_from_torchvision(theirs: dict[str, Tensor], depth: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """torchvision's tensors under our names; the class token's position is folded into `prefix`."""
    position = theirs["encoder.pos_embedding"][0]
    ours = {
        "patch_embed.proj.weight": theirs["conv_proj.weight"],
        "patch_embed.proj.bias": theirs["conv_proj.bias"],
        "prefix": theirs["class_token"][0] + position[:1],
        "position.grid": position[1:].unflatten(0, grid),
    }
    names = {
        "norm1.{}": "ln_1.{}",
        "attn.qkv.{}": "self_attention.in_proj_{}",
        "attn.proj.{}": "self_attention.out_proj.{}",
        "norm2.{}": "ln_2.{}",
        "mlp.fc1.{}": "mlp.0.{}",
        "mlp.fc2.{}": "mlp.3.{}",
    }
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = theirs[f"encoder.ln.{kind}"]
        ours[f"head.{kind}"] = theirs[f"heads.head.{kind}"]
        for layer, (our, their) in itertools.product(range(depth), names.items()):
            ours[f"blocks.{layer}.{our.format(kind)}"] = theirs[
                f"encoder.layers.encoder_layer_{layer}.{their.format(kind)}"
            ]
    return ours


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_vit_equals_torchvisions(dtype, tolerance):
    theirs = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    shaken(theirs).to(dtype).eval()
    ours = ViT(config()).to(dtype).eval()
    ours.load_state_dict(ours_from_torchvision(theirs.state_dict(), depth=3, grid=(4, 4)))
    x = images(2, 3, 16, 16, dtype=dtype)
    assert difference(ours(x), theirs(x)) < tolerance
    assert ours(x).std() > 0.1  # not both silent


def ours_from_timm(theirs: nn.Module, grid: tuple[int, int]) -> dict[str, Tensor]:
    """timm's tensors under our names, which are mostly its own."""
    state = dict(theirs.state_dict())
    tokens = [state.pop(name)[0] for name in ("cls_token", "reg_token") if name in state]
    width = state["pos_embed"].shape[-1]
    prefix = torch.cat([torch.zeros(0, width, dtype=state["pos_embed"].dtype), *tokens])
    position = state.pop("pos_embed")[0]
    if not theirs.no_embed_class:
        prefix, position = prefix + position[: len(prefix)], position[len(prefix) :]
    return {**state, "prefix": prefix, "position.grid": position.unflatten(0, grid)}


SWIGLU = {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": nn.SiLU, "mlp_ratio": 4.0}
TIMM = {  # what differs from the plain ViT: in timm's words, in ours
    "plain": ({}, {}),
    "registers": ({"reg_tokens": 4}, {"prefix_tokens": 5}),
    "registers without positions": ({"reg_tokens": 4, "no_embed_class": True}, {"prefix_tokens": 5}),
    "normed q and k": ({"qk_norm": True}, {"qk_norm": True}),
    "layer scale": ({"init_values": 0.1}, {"layer_scale": 0.1}),
    "mean pool": ({"global_pool": "avg", "class_token": False, "fc_norm": False}, {"pool": "mean", "prefix_tokens": 0}),
    "mean of patches only": ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
    "no bias on q, k, v": ({"qkv_bias": False}, {"qkv_bias": False}),
    "no final norm": ({"final_norm": False}, {"final_norm": False}),
    "swiglu": (SWIGLU, {"mlp": "swiglu"}),
    "tanh GELU": ({"act_layer": partial(nn.GELU, approximate="tanh")}, {"mlp": "gelu_tanh"}),
    "features only": ({"num_classes": 0}, {"classes": 0}),
    "grey": ({"in_chans": 1}, {"channels": 1}),
}


def timm_twin(their_options: dict, **our_options) -> tuple[nn.Module, ViT]:
    """A random timm ViT of 3 x 5 patches in float64, and ours with its weights."""
    base = dict(img_size=WIDE, patch_size=4, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2.0, num_classes=5)
    theirs = shaken(timm_vit.VisionTransformer(**{**base, **their_options})).double().eval()
    ours = ViT(config(image_size=WIDE, **our_options)).double().eval()
    ours.load_state_dict(ours_from_timm(theirs, (3, 5)))
    return theirs, ours


@pytest.mark.parametrize(("their_options", "our_options"), TIMM.values(), ids=TIMM)
def test_the_vit_equals_timms(their_options, our_options):
    theirs, ours = timm_twin(their_options, **our_options)
    x = images(2, ours.config.channels, *WIDE, dtype=torch.float64)
    assert difference(ours(x), theirs(x)) < 1e-10
    assert difference(ours.float()(x.float()), theirs.float()(x.float())) < 1e-5
    assert ours(x.float()).std() > 0.1  # not both silent


@pytest.mark.parametrize("size", [(20, 12), (24, 40), (8, 8)])
def test_positions_resize_as_timms_do(size):
    theirs, ours = timm_twin({"dynamic_img_size": True})
    x = images(2, 3, *size)
    assert difference(ours.float()(x), theirs.float()(x)) < 1e-5


def test_attention_pooling_is_one_query_over_all_tokens():
    """Written out head by head, in numpy."""
    pool = shaken(AttentionPool(config(pool="map"))).double()
    x = images(3, 7, 32, dtype=torch.float64)
    p = {name: tensor.detach().numpy() for name, tensor in pool.named_parameters()}
    q = p["query"][0] @ p["q.weight"].T + p["q.bias"]
    mixed = np.zeros((3, 32))
    for image, head in itertools.product(range(3), range(4)):
        of_head = slice(8 * head, 8 * head + 8)
        k = (x[image].numpy() @ p["kv.weight"][:32].T + p["kv.bias"][:32])[:, of_head]
        v = (x[image].numpy() @ p["kv.weight"][32:].T + p["kv.bias"][32:])[:, of_head]
        weights = np.exp(k @ q[of_head] / math.sqrt(8))
        mixed[image, of_head] = weights / weights.sum() @ v
    expected = mixed @ p["proj.weight"].T + p["proj.bias"]
    with torch.no_grad():
        expected += pool.mlp(pool.norm(torch.from_numpy(expected))).numpy()
    np.testing.assert_allclose(pool(x).detach().numpy(), expected, atol=1e-12)


def test_the_mlp_head_is_linear_tanh_linear():
    vit = shaken(ViT(config(head="mlp"))).eval()
    x = images(2, 3, 16, 16)
    pooled = vit.tokens(x)[:, 0]
    hidden = torch.tanh(pooled @ vit.head.fc1.weight.T + vit.head.fc1.bias)
    assert difference(vit(x), hidden @ vit.head.fc2.weight.T + vit.head.fc2.bias) < 1e-5


def test_without_classes_the_pooled_vector_is_the_answer():
    vit = shaken(ViT(config(classes=0, head="mlp"))).eval()
    x = images(2, 3, 16, 16)
    assert torch.equal(vit(x), vit.tokens(x)[:, 0])


# Positions.


def test_sincos_positions_equal_a_loop_over_sines_and_cosines():
    h, w, width = 3, 5, 32
    expected = np.zeros((h, w, width))
    for y, x, i in itertools.product(range(h), range(w), range(width // 4)):
        frequency = 10_000.0 ** (-i / (width // 4 - 1))
        expected[y, x, i::8] = [f(v * frequency) for v in (x, y) for f in (math.sin, math.cos)]
    embedded = make_position(config(position=SinCos())).add(torch.zeros(2, h, w, width))
    np.testing.assert_allclose(embedded.numpy(), np.stack([expected] * 2), atol=1e-6)


def test_sincos_temperature_is_the_configs():
    plain = make_position(config(position=SinCos())).add(torch.zeros(1, 3, 5, 32))
    cold = make_position(config(position=SinCos(temperature=100.0))).add(torch.zeros(1, 3, 5, 32))
    assert difference(plain, cold) > 0.1
    assert cold[0, 0, 1, 7].item() == pytest.approx(math.sin(1 / 100), abs=1e-6)


def test_rotary_scores_depend_on_the_difference_of_places_only():
    """One query and one key everywhere: the score of two patches is a function of how far apart they stand."""
    h, w = 3, 5
    rotate = make_position(config(position=Rotary(), prefix_tokens=0, pool="mean")).rotation(h, w)
    q, k = images(2, 1, 4, 1, 8).expand(2, 1, 4, h * w, 8)
    scores = (rotate(q) @ rotate(k).mT)[0]
    apart: dict[tuple[int, int], list[Tensor]] = {}
    for a, b in itertools.product(range(h * w), repeat=2):
        apart.setdefault((b // w - a // w, b % w - a % w), []).append(scores[:, a, b])
    for same in apart.values():
        assert (torch.stack(same) - same[0]).abs().max() < 1e-4
    means = torch.stack([torch.stack(same).mean(0) for same in apart.values()])
    assert len(means) == 45
    assert torch.pdist(means).min() > 1e-2  # and every difference has its own


def test_only_positions_tell_where_a_patch_stands():
    x = images(1, 3, 16, 16)
    moved = x.roll((4, 8), dims=(2, 3))  # by whole patches
    for position in POSITIONS:
        vit = shaken(ViT(config(position=position, prefix_tokens=0, pool="mean"))).eval()
        assert (difference(vit(x), vit(moved)) < 1e-5) == isinstance(position, NoPosition)


def test_rotary_equals_turning_pairs_as_complex_numbers():
    h, w, prefix = 3, 5, 2
    rotate = make_position(config(position=Rotary(), prefix_tokens=prefix)).rotation(h, w)
    q = images(2, 4, prefix + h * w, 8, dtype=torch.float64)
    turned = rotate(q)
    pairs = torch.complex(q[..., :4], q[..., 4:]).numpy()  # channel i turns with channel i + K/2
    for y, x in itertools.product(range(h), range(w)):
        positions = [(2 * y + 1) / h - 1, (2 * x + 1) / w - 1]
        angles = [2 * math.pi * coordinate / 100.0 ** (i / 2) for coordinate in positions for i in range(2)]
        pairs[:, :, prefix + y * w + x] *= np.exp(1j * np.array(angles))
    np.testing.assert_allclose(turned[..., :4].numpy(), pairs.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 4:].numpy(), pairs.imag, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_rotary_keeps_lengths_and_leaves_prefix_tokens_alone(prefix):
    vit_config = config(position=Rotary(), prefix_tokens=prefix, pool="mean")
    q = images(2, 4, prefix + 15, 8)
    turned = make_position(vit_config).rotation(3, 5)(q)
    assert torch.equal(turned[:, :, :prefix], q[:, :, :prefix])
    assert difference(turned.norm(dim=-1), q.norm(dim=-1)) < 1e-5
    assert ((turned - q)[:, :, prefix:].norm(dim=-1) > 1e-3).sum() >= 2 * 4 * 14  # all but the middle patch turn


def test_rotary_works_in_the_precision_of_its_input():
    rotate = make_position(config(position=Rotary(), prefix_tokens=0, pool="mean")).rotation(4, 4)
    q = images(1, 4, 16, 8, dtype=torch.float64)
    assert difference(rotate(q)[:, :, 5].norm(dim=-1), q[:, :, 5].norm(dim=-1)) < 1e-6
    tiny = q * 1e-60  # below what float32 holds
    assert difference(rotate(tiny) * 1e60, rotate(q)) < 1e-6
    assert rotate(q.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("position", [SinCos(), Rotary()], ids=["sincos", "rotary"])
def test_fixed_positions_stay_exact_in_a_bf16_model(position):
    """Only their result is rounded: rounded frequencies would put patches of a large grid in wrong positions."""
    exact, rounded = make_position(config(position=position)), make_position(config(position=position)).bfloat16()
    if isinstance(position, Rotary):
        q = images(1, 4, 1 + 64 * 64, 8)
        assert difference(rounded.rotation(64, 64)(q), exact.rotation(64, 64)(q)) < 1e-5
    else:
        zeros = torch.zeros(1, 64, 64, 32)
        assert difference(rounded.add(zeros.bfloat16()).float(), exact.add(zeros)) < 2**-8


@pytest.mark.parametrize("position", POSITIONS, ids=lambda position: type(position).__name__)
def test_fixed_positions_are_not_weights(position):
    names = [name for name in ViT(config(position=position)).state_dict() if name.startswith("position")]
    assert names == (["position.grid"] if isinstance(position, Learned) else [])


# Any image size.


@pytest.mark.parametrize("position", POSITIONS, ids=lambda position: type(position).__name__)
@pytest.mark.parametrize("size", [(16, 16), WIDE, (20, 12), (4, 4), (32, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size_that_divides_into_patches_works(position, size, dtype):
    vit = ViT(config(position=position)).to(dtype).eval()
    x = images(2, 3, *size, dtype=dtype)
    assert vit(x).shape == (2, 5)
    assert vit(x).dtype == dtype
    assert vit(x).isfinite().all()
    assert vit.tokens(x).shape == (2, 1 + size[0] // 4 * (size[1] // 4), 32)


def test_patches_are_ordered_row_by_row():
    """Each token of a model without blocks' mixing is its own patch, projected."""
    vit = initialised(ViT(config(position=NoPosition(), final_norm=False)), zero_init_residual=True).eval()
    x = images(1, 3, *WIDE)
    tokens = vit.tokens(x)[0, 1:]
    for y, column in itertools.product(range(3), range(5)):
        patch = x[0, :, 4 * y : 4 * y + 4, 4 * column : 4 * column + 4]
        expected = (vit.patch_embed.proj.weight * patch).sum((1, 2, 3)) + vit.patch_embed.proj.bias
        assert difference(tokens[5 * y + column], expected) < 1e-5


def test_positions_of_the_trained_size_are_untouched():
    position = shaken(make_position(config(image_size=WIDE)))
    assert torch.equal(position.add(torch.zeros(1, 3, 5, 32))[0], position.grid)


def test_a_transposed_grid_is_another_grid():
    """5 x 3 has as many patches as 3 x 5; it is resized all the same, not reread."""
    position = shaken(make_position(config(image_size=WIDE)))
    added = position.add(torch.zeros(1, 5, 3, 32))[0]
    assert not torch.allclose(added.flatten(0, 1), position.grid.flatten(0, 1), atol=0.01)
    expected = F.interpolate(position.grid.permute(2, 0, 1)[None], (5, 3), mode="bicubic", antialias=True)
    assert torch.equal(added, expected[0].permute(1, 2, 0))


def test_an_offset_of_a_whole_place_is_refused():
    """It would make a grid of one row and column more than there are patches."""
    with pytest.raises(UsageError, match="offset is 1; it must be a number, at least 0 and below 1"):
        Learned(antialias=False, offset=1)


def test_resizing_follows_the_familys_rule():
    """Antialias and offset change the result; an offset goes into the scale and not into the size (DINOv2)."""
    grids = []
    for options in (Learned(), Learned(antialias=False), Learned(antialias=False, offset=0.1)):
        position = make_position(config(position=options))
        assert isinstance(position, LearnedEmbedding)
        shaken(position)
        grids.append(position.resize(3, 2))
        assert grids[-1].shape == (3, 2, 32)
    assert all(difference(a, b) > 1e-3 for a, b in itertools.combinations(grids, 2))
    as_dinov2 = F.interpolate(
        shaken(make_position(config())).grid.permute(2, 0, 1)[None], scale_factor=(3.1 / 4, 2.1 / 4), mode="bicubic"
    )
    assert difference(grids[2], as_dinov2[0].permute(1, 2, 0)) < 1e-6


@pytest.mark.parametrize("size", [(15, 16), (16, 18), (2, 16), (0, 16)])
def test_an_image_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels does not divide into patches of 4"):
        ViT(config())(torch.zeros(1, 3, *size))


# The config.

IMPOSSIBLE = [
    ({"width": 0}, "width is 0"),
    ({"depth": 0}, "depth"),
    ({"depth": 2.5}, "depth"),
    ({"heads": 0}, "heads"),
    ({"heads": 5}, "width 32 does not divide into 5 heads"),
    ({"mlp_width": -1}, "mlp_width"),
    ({"patch": 0}, "patch"),
    ({"channels": 0}, "channels"),
    ({"classes": -1}, "classes"),
    ({"prefix_tokens": -1}, "prefix_tokens"),
    ({"prefix_tokens": -1, "pool": "mean"}, "prefix_tokens is -1; it must be"),
    ({"prefix_tokens": 0}, "pool 'cls' needs a class token, but prefix_tokens is 0"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"dropout": -0.1}, "dropout"),
    ({"attention_dropout": 1.0}, "attention_dropout"),
    ({"embedding_dropout": 2.0}, "embedding_dropout"),
    ({"drop_path": 1.0}, "drop_path"),
    ({"mlp": "gleu"}, "mlp 'gleu' is not known (did you mean gelu"),
    ({"pool": "max"}, "pool 'max' is not known"),
    ({"head": "lienar"}, "head 'lienar' is not known (did you mean linear?"),
    ({"image_size": 18}, "image of 18x18 pixels does not divide into patches of 4"),
    ({"image_size": (16, 18)}, "image of 16x18"),
    ({"image_size": 0}, "image"),
    ({"image_size": (16,)}, "image_size"),
    ({"image_size": (16, 16, 3)}, "image_size"),
    ({"width": 30, "heads": 3, "position": SinCos()}, "width divisible by 4, not 30"),
    ({"width": 24, "heads": 4, "position": Rotary()}, "head width divisible by 4, not 6"),
    ({"position": "rotari"}, "position 'rotari' is not known (did you mean rotary?"),
    ({"position": None}, "position is None"),
]


@pytest.mark.parametrize(("options", "sentence"), IMPOSSIBLE, ids=[str(options) for options, _ in IMPOSSIBLE])
def test_fields_that_do_not_fit_are_refused_by_name(options, sentence):
    with pytest.raises(UsageError) as caught:
        config(**options)
    assert sentence in str(caught.value)


def test_a_config_cannot_be_changed_and_takes_keywords_only():
    with pytest.raises(AttributeError):
        config().width = 64
    with pytest.raises(TypeError):
        ViTConfig(32)


@pytest.mark.parametrize("size", [16, WIDE])
@pytest.mark.parametrize(
    "position",
    [*POSITIONS, Learned(antialias=False, offset=0.1), SinCos(temperature=50.0), Rotary(base=7.0)],
    ids=repr,
)
def test_json_gives_the_same_config_back(position, size):
    start = config(position=position, image_size=size, layer_scale=0.5, pool="mean", qk_norm=True)
    assert config_from_json(json.loads(json.dumps(config_to_json(start)))) == start


def test_json_without_a_field_takes_its_default():
    assert config_from_json({"width": 96, "heads": 3}) == ViTConfig(width=96, heads=3)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"widht": 32}, "no field 'widht' (did you mean width?)"),
        ({"position": {"kind": "rotery"}}, "position 'rotery' is not known (did you mean rotary?"),
        ({"position": {"kind": "rotary", "temperature": 1.0}}, "position 'rotary' has no option 'temperature'"),
        ({"position": {"kind": "rotary", "base": 100.0, "bas": 1}}, "has no option 'bas' (did you mean base"),
        ({"position": {}}, "position"),
        ({"position": None}, "position is None"),
        ({"width": "32"}, "width"),
        ({"dropout": "none"}, "must be a number"),
        ({"pool": "means"}, "did you mean mean"),
    ],
    ids=str,
)
def test_json_that_does_not_fit_is_refused_with_a_hint(document, sentence):
    with pytest.raises(UsageError) as caught:
        config_from_json(document)
    assert sentence in str(caught.value)


def test_a_position_can_be_named():
    assert [position_from_json(name) for name in ("learned", "sincos", "rotary", "none")] == POSITIONS
    assert position_from_json(Rotary(base=3.0)) == Rotary(base=3.0)


@pytest.mark.parametrize(("size", "grid"), [(16, (4, 4)), (WIDE, (3, 5))])
def test_the_grid_is_patches_down_and_across(size, grid):
    assert config(image_size=size).grid == grid


# Attention's kernel.


@pytest.mark.parametrize("keys", [9, 4])
def test_attend_equals_softmax_written_out(keys):
    q, k, v = images(2, 4, 9, 8), images(2, 4, keys, 8, seed=2), images(2, 4, keys, 8, seed=3)
    scores = torch.einsum("bntk,bnsk->bnts", q, k) / math.sqrt(8)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    assert difference(attend(q, k, v), torch.einsum("bnts,bnsk->bntk", weights, v)) < 1e-5
    assert difference(attention_weights(q, k), weights) < 1e-6


def test_attend_in_bf16_agrees_with_the_fused_kernel_in_float32():
    q, k, v = (images(2, 4, 50, 24, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    mixed = attend(q, k, v)
    assert mixed.dtype == torch.bfloat16
    assert difference(mixed.float(), F.scaled_dot_product_attention(q.float(), k.float(), v.float())) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_dropout_leaves_out_weights_and_scales_the_rest(dtype):
    """Values that are one-hot show the weights themselves: each is zero or twice what it was."""
    torch.manual_seed(0)
    q, k = images(8, 4, 16, 16, dtype=dtype), images(8, 4, 16, 16, seed=2, dtype=dtype)
    one_hot = torch.eye(16, dtype=dtype).expand(8, 4, 16, 16)
    result, dropped = attend(q, k, one_hot).float(), attend(q, k, one_hot, 0.5).float()
    assert ((dropped == 0) | ((dropped - 2 * result).abs() < 0.02 * result + 1e-6)).all()
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


# Dropout of every kind, and recomputing.


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "embedding_dropout", "drop_path"])
def test_dropout_is_active_in_training_and_silent_otherwise(field):
    vit = shaken(ViT(config(**{field: 0.5})))
    plain = ViT(config()).eval()
    plain.load_state_dict(vit.state_dict())
    x = images(4, 3, 16, 16)
    torch.manual_seed(0)
    assert not torch.equal(vit.train()(x), vit(x))
    assert torch.equal(vit.eval()(x), vit(x))
    assert torch.equal(vit(x), plain(x))


def test_without_dropout_training_computes_what_evaluation_does():
    vit = shaken(ViT(config()))
    x = images(4, 3, 16, 16)
    assert torch.equal(vit.train()(x), vit.eval()(x))


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    result = DropPath(0.3).train()(torch.ones(4000, 2, 3))
    per_image = result.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert result.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_grows_with_depth():
    assert [block.drop_path.rate for block in ViT(config(drop_path=0.2)).blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("position", [Learned(), Rotary()], ids=["learned", "rotary"])
def test_recomputing_gives_the_same_gradients(position):
    """With dropout too: the second pass draws what the first drew."""
    vit = shaken(ViT(config(position=position, dropout=0.1, attention_dropout=0.1, drop_path=0.3))).train()
    x, gradients, calls = images(4, 3, 16, 16), [], []
    vit.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for vit.gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        calls.clear()
        vit.zero_grad()
        F.cross_entropy(vit(x), torch.arange(4)).backward()
        gradients.append({name: p.grad.clone() for name, p in vit.named_parameters()})
        assert len(calls) == 1 + vit.gradient_checkpointing  # it did recompute
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
@pytest.mark.parametrize("mlp", ["gelu", "gelu_tanh", "swiglu"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_parameter_learns(pool, mlp, head):
    vit = ViT(config(pool=pool, mlp=mlp, head=head, layer_scale=0.1, qk_norm=True))
    F.cross_entropy(vit(images(2, 3, 16, 16)), torch.tensor([0, 1])).backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []


# How parameters start.


def test_parameters_start_as_the_table_says():
    torch.manual_seed(0)
    options = dict(width=64, mlp_width=256, image_size=32, qk_norm=True, layer_scale=0.3, pool="map", head="mlp")
    vit = initialised(shaken(ViT(config(**options, prefix_tokens=9))))
    for name, p in vit.named_parameters():
        if name.endswith("gamma"):
            assert (p == 0.3).all(), name
        elif "norm" in name:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        else:
            std = (3 * 4 * 4) ** -0.5 if name == "patch_embed.proj.weight" else 0.02
            # the fewest numbers are the query's 64, whose deviation strays by a tenth or so
            assert p.std().item() == pytest.approx(std, rel=0.3 if p.numel() < 500 else 0.1), name
            assert abs(p.mean().item()) < 4 * std / p.numel() ** 0.5, name


def test_a_new_vit_is_initialised():
    torch.manual_seed(0)
    vit = ViT(config())
    torch.manual_seed(0)
    again = ViT(config())
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), again.parameters(), strict=True))
    assert vit.position.grid.std().item() == pytest.approx(0.02, rel=0.2)
    assert vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_std_and_patch_init_std_are_as_asked():
    vit = initialised(ViT(config()), std=0.1, patch_init_std=0.5)
    assert vit.blocks[2].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert vit.position.grid.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_zero_branches_make_each_block_the_identity(mlp):
    vit = initialised(ViT(config(mlp=mlp, layer_scale=0.5)), zero_init_residual=True)
    x = images(2, 17, 32)
    for block in vit.blocks:
        assert torch.equal(block(x), x)
    assert not torch.equal(ViT(config(mlp=mlp)).blocks[0](x), x)
    pooling = initialised(ViT(config(pool="map")), zero_init_residual=True).pool
    assert all(weight.any() for name, weight in pooling.named_parameters() if name.endswith("fc2.weight"))
