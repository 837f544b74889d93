"""Weights as people have them on disk: wrapped models, checkpoints of trainers, pointers, narrow numbers."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import timm
import torch
import torchvision
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file, save_model
from tests.parity_cases import build_torchvision, randomize_parameters
from torch import Tensor, nn

import vitrail
from vitrail import UsageError, VitrailError
from vitrail.cli import main
from vitrail.exporting.libraries import export_library
from vitrail.weights.inspection import inspect_file

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)
TINY_HF = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomize_parameters(timm.create_model("vit_tiny_patch16_224", **TINY)).eval()


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    """A folder of timm's without weights."""
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    (tmp_path / "model.safetensors").unlink()
    return tmp_path


def equals(folder: Path, model: nn.Module, **options: bool) -> bool:
    with torch.inference_mode():
        return bool((vitrail.load(folder, **options).vit(X) - model(X)).abs().max() < 1e-5)


# Wrapped models


def prefix(*prefixes: str) -> Callable[[State], State]:
    return lambda state: {"".join(prefixes) + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], State]] = {
    "none": prefix(),
    "torch.compile": prefix("_orig_mod."),
    "DataParallel": prefix("module."),
    "Lightning": prefix("model."),
    "Lightning, compiled": prefix("model.", "_orig_mod."),
    "compiled, parallel": prefix("_orig_mod.", "module."),
    "parallel, compiled": prefix("module.", "_orig_mod."),
    "all": prefix("_orig_mod.", "module.", "model."),
    "another attribute": prefix("net."),
    "compiled blocks": lambda state: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in state.items()
    },
    "Lightning with a loss": lambda state: {
        **prefix("model.")(state), "criterion.weight": torch.ones(5), "accuracy.total": torch.ones(()),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_model_is_loaded(case: str, folder: Path, model: nn.Module, capsys: pytest.CaptureFixture[str]):
    save_file(WRAPPED[case](model.state_dict()), folder / "model.safetensors")
    assert equals(folder, model)
    assert ("left out: accuracy.total, criterion.weight" in capsys.readouterr().err) == (
        case == "Lightning with a loss"
    )
    assert inspect_file(folder / "model.safetensors")["layouts"]


def test_a_real_compiled_model_is_loaded(folder: Path, model: nn.Module):
    wrapped = nn.DataParallel(torch.compile(model))
    torch.save(wrapped.state_dict(), folder / "pytorch_model.bin")
    assert equals(folder, model, torch_files=True)


def test_several_models_in_a_file_are_refused(folder: Path, model: nn.Module):
    state = model.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    save_file({**prefix("student.")(state), **prefix("ema.")(copies)}, folder / "model.safetensors")
    with pytest.raises(VitrailError, match="has several models: ema, student"):
        vitrail.load(folder)


def test_a_wrapped_transformers_model_is_loaded(tmp_path: Path):
    """Its head has a name outside the root of the ViT."""
    model = randomize_parameters(hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF))).eval()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    save_file(prefix("model.", "_orig_mod.")(saved), tmp_path / "model.safetensors")
    with torch.inference_mode():
        assert (vitrail.load(tmp_path).vit(X) - model(X).logits).abs().max() < 1e-5


# Checkpoints of trainers


CHECKPOINTS: dict[str, Callable[[State], object]] = {
    "a state dict": lambda state: state,
    "PyTorch's example": lambda state: {
        "epoch": 3, "arch": "vit", "state_dict": prefix("module.")(state), "best_acc1": torch.tensor(1.0),
    },
    "timm's train.py": lambda state: {
        "epoch": 3, "arch": "vit_tiny_patch16_224", "args": argparse.Namespace(lr=0.1, model="vit"), "version": 2,
        "state_dict": state, "metric": 71.5,
    },
    "the mean of the weights": lambda state: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "state_dict_ema": state,
    },
    "Lightning": lambda state: {
        "state_dict": prefix("model.")(state), "epoch": 1, "pytorch-lightning_version": "2.5.0", "callbacks": {},
    },
    "DeiT": lambda state: {"model": state},
}  # fmt: skip


@pytest.mark.parametrize("name", ["model_best.pth.tar", "checkpoint.pth", "last.ckpt", "weights.pt"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_trainers_checkpoint_is_loaded(case: str, name: str, folder: Path, model: nn.Module):
    """By the name of a folder's weights, and as a file that `inspect` describes."""
    torch.save(CHECKPOINTS[case](model.state_dict()), folder / name)
    facts = inspect_file(folder / name, torch_files=True)
    assert "timm's ViT" in facts["layouts"]
    (folder / name).rename(folder / "pytorch_model.bin")
    assert equals(folder, model, torch_files=True)


def test_a_pth_tar_file_is_one_of_torchs_format(folder: Path, model: nn.Module):
    torch.save(model.state_dict(), folder / "model_best.pth.tar")
    with pytest.raises(UsageError, match="torch's own format"):
        vitrail.load(folder / "model_best.pth.tar")


def test_torchvision_and_timm_files_match_their_cards(tmp_path: Path):
    """The ways of saving that users have: `torch.save`, `save_model`, half of the bytes."""
    torch.manual_seed(0)
    theirs = torchvision.models.vit_b_16().eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    clf = vitrail.load(f"torchvision/vit_b_16@{tmp_path / 'x.pth'}", torch_files=True)
    assert torch.equal(clf.vit.head.weight, theirs.heads.head.weight)
    tiny = randomize_parameters(timm.create_model("vit_tiny_patch16_224")).eval()
    save_model(tiny, str(tmp_path / "tiny.safetensors"))
    name = f"timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@{tmp_path / 'tiny.safetensors'}"
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert (vitrail.load(name).vit(x) - tiny(x)).abs().max() < 1e-4


# Pointers and adapters


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346292833\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights.npz", "x.pth", "x.onnx"])
def test_a_git_lfs_pointer_is_named(name: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / name).write_text(POINTER)
    in_folder = name in ("model.safetensors", "pytorch_model.bin", "weights.npz")
    for path in [folder / name, *([folder] if in_folder else [])]:
        arguments = ["predict", str(path), "x.png", "--json"] + ([] if name == "x.onnx" else ["--torch-files"])
        assert main(arguments) == 1
        answer = json.loads(capsys.readouterr().out)
        assert "is a Git LFS pointer" in answer["error"]
        assert "git lfs pull" in answer["hint"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_peft_must_be_merged(tmp_path: Path):
    base = hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF))
    wrapped = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query", "value", "q_proj", "v_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter", tmp_path / "adapter/adapter_model.safetensors"):
        with pytest.raises(VitrailError, match="adapter of peft|not merged") as caught:
            vitrail.load(path)
        assert "merge_and_unload" in str(caught.value)
    merged = wrapped.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        assert (vitrail.load(tmp_path / "merged").vit(X) - merged(X).logits).abs().max() < 1e-5


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_nan_or_infinity_is_named(value: float, folder: Path, model: nn.Module):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.0.attn.qkv.weight"][0] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(VitrailError, match=r"blocks\.0\.attn\.qkv\.weight has 32 values that are NaN or infinite"):
        vitrail.load(folder)


def test_an_artifact_with_nan_is_refused_by_name(folder: Path, model: nn.Module):
    save_file(model.state_dict(), folder / "model.safetensors")
    clf = vitrail.load(folder)
    clf.vit.head.bias.data[1] = float("nan")
    clf.save(folder / "x.safetensors")
    with pytest.raises(VitrailError, match=r"x\.safetensors: the tensor head\.bias has 1 values"):
        vitrail.load(folder / "x.safetensors")


def test_large_finite_weights_are_allowed(folder: Path, model: nn.Module):
    """Their sum overflows."""
    state = model.state_dict() | {"head.bias": torch.full((5,), 3e38)}
    save_file(state, folder / "model.safetensors")
    assert vitrail.load(folder).vit.head.bias.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_widened_before_they_are_summed(dtype: torch.dtype, tmp_path: Path):
    """The class token and its position are one sum in vitrail; transformers widens both when it loads them."""
    saved = randomize_parameters(hf.Dinov2Model(hf.Dinov2Config(**TINY_HF | {"mlp_ratio": 2}))).to(dtype)
    saved.save_pretrained(tmp_path)
    model = hf.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(X).last_hidden_state[:, 0]
        assert (vitrail.load(tmp_path).vit(X) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_artifact_of_another_float_type_is_loaded(dtype: torch.dtype, tmp_path: Path):
    clf = vitrail.load("cifar10-small")
    clf.vit.to(dtype)
    clf.save(tmp_path / "x.safetensors")
    again = vitrail.load(tmp_path / "x.safetensors")
    for name, tensor in clf.vit.state_dict().items():
        assert torch.equal(again.vit.state_dict()[name], tensor.float()), name


def test_a_tensor_of_another_type_is_named_with_both(tmp_path: Path):
    clf = vitrail.load("cifar10-small")
    clf.vit.head.bias = nn.Parameter(torch.zeros(10, dtype=torch.int64), requires_grad=False)
    clf.save(tmp_path / "x.safetensors")
    with pytest.raises(VitrailError, match=r"head\.bias is \(10,\) int64, expected \(10,\) float32"):
        vitrail.load(tmp_path / "x.safetensors")


def test_loading_leaves_torchs_generator_alone(folder: Path, model: nn.Module):
    save_file(model.state_dict(), folder / "model.safetensors")
    for name in ("cifar10-small", folder):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        clf = vitrail.load(name)
        clf.with_image_size(40)
        assert torch.equal(torch.get_rng_state(), before)


# Shards, and pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sharded_folder_of_transformers_is_loaded(dtype: torch.dtype, tmp_path: Path):
    model = randomize_parameters(hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF))).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.inference_mode():
        expected = model.float().eval()(X).logits
        assert (vitrail.load(tmp_path).vit(X) - expected).abs().max() < 1e-5


def test_torchvisions_state_dict_is_loaded_however_it_is_saved(tmp_path: Path):
    """The names in memory and those of the published files."""
    from vitrail.weights.tensor_files import read_tensors
    from vitrail.weights.wrappers import strip_wrappers

    state = build_torchvision().state_dict()
    torch.save({"state_dict": prefix("module.")(state)}, tmp_path / "x.pth.tar")
    tensors = strip_wrappers(read_tensors(tmp_path / "x.pth.tar", torch_files=True), tmp_path)
    assert tensors.keys() == state.keys()


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (37, 41)])
def test_siglip_sees_what_transformers_shows_it(shape: tuple[int, int], tmp_path: Path):
    """Images of 36 pixels, patches of 8: the convolution ignores the last 4 rows and columns (So400m: 384 and 14)."""
    config = hf.SiglipVisionConfig(**TINY_HF | {"image_size": 36}, architectures=["SiglipVisionModel"])
    model = randomize_parameters(hf.SiglipVisionModel(config)).eval()
    model.save_pretrained(tmp_path)
    processor = hf.SiglipImageProcessor(size={"height": 36, "width": 36})
    processor.save_pretrained(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / "x.png")
    clf = vitrail.load(tmp_path)
    assert (clf.preprocess.image_size, clf.preprocess.trim) == ((32, 32), (4, 4))
    theirs = processor(Image.open(tmp_path / "x.png"), return_tensors="pt")["pixel_values"]
    ours = clf.normalize(clf.read_image(tmp_path / "x.png")[None])
    assert (ours - theirs[..., :32, :32]).abs().max() < 1e-5
    with torch.inference_mode():
        assert (clf.vit(ours) - model(theirs).pooler_output).abs().max() < 1e-4
    clf.save(tmp_path / "saved.safetensors")
    export_library(clf, "hf", tmp_path / "exported")
    for again in ("saved.safetensors", "exported"):
        assert vitrail.load(tmp_path / again).preprocess == clf.preprocess


PROCESSORS = {
    "no normalization": hf.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
    "no rescaling": hf.ViTImageProcessor(
        size={"height": 32, "width": 32}, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3
    ),
    "another factor": hf.ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
    "the shorter edge": hf.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 36, "width": 36}),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_processors_numbers_are_honored(case: str, tmp_path: Path):
    hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF)).save_pretrained(tmp_path)
    PROCESSORS[case].save_pretrained(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "x.png")
    clf = vitrail.load(tmp_path)
    theirs = PROCESSORS[case](Image.open(tmp_path / "x.png"), return_tensors="pt")["pixel_values"]
    ours = clf.normalize(clf.read_image(tmp_path / "x.png")[None])
    assert (ours - theirs[..., :32, :32]).abs().max() / theirs.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"problem_type": "segmentation", "num_labels": 1}, "segmentation', which is not known"),
        ({"num_labels": 1}, "a single output"),
    ],
)
def test_a_model_whose_outputs_are_no_classes_is_refused(change: dict[str, object], sentence: str, tmp_path: Path):
    """transformers gives these a sigmoid, or none: the probabilities of a softmax would be wrong."""
    hf.ViTForImageClassification(hf.ViTConfig(**{**TINY_HF, **change})).save_pretrained(tmp_path)
    with pytest.raises(VitrailError, match=sentence):
        vitrail.load(tmp_path)


CHANGED = {
    "no resizing": ({"do_resize": False}, "preprocessor_config.json has do_resize=false"),
    "no mean": ({"image_mean": ...}, "preprocessor_config.json lacks 'image_mean'"),
    "a longest edge": ({"size": {"longest_edge": 32}}, "preprocessor_config.json has the size"),
    "an offset": ({"rescale_offset": True}, "has a rescale_offset"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_a_processor_does_otherwise_is_refused(case: str, tmp_path: Path):
    change, sentence = CHANGED[case]
    hf.ViTForImageClassification(hf.ViTConfig(**TINY_HF)).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    document = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))
    with pytest.raises(VitrailError, match=sentence):
        vitrail.load(tmp_path)


def test_one_number_is_the_shorter_edge_in_clips_old_files(tmp_path: Path):
    """transformers reads the old `size` of CLIP's processor as the shorter edge, that of others as a square."""
    hf.CLIPVisionModel(hf.CLIPVisionConfig(**TINY_HF)).save_pretrained(tmp_path)
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": True,
        "do_resize": True, "do_normalize": True, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert vitrail.load(tmp_path).preprocess.fit == "crop"
