"""Public weights: cards, files, hostile files, hub folders, caches, preprocessing, and a real checkpoint."""

import io
import json
import math
import os
import pickle
import socket
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
import torchvision
import transformers as hf
from PIL import Image, ImageOps
from safetensors.torch import load_file, save, save_file
from tests.parity_cases import build_torchvision
from tools.timm_cards import read_timm_model

import vitrail
from vitrail import UsageError, VitrailError
from vitrail.cli import main
from vitrail.data.decode import decode
from vitrail.weights.cards import find_card, load_cards
from vitrail.weights.classes import load_imagenet_classes
from vitrail.weights.config_json import config_to_json
from vitrail.weights.conversion import export_weights, meta_state_dict
from vitrail.weights.inspection import inspect_file
from vitrail.weights.layouts import LAYOUTS
from vitrail.weights.tensor_files import read_tensors
from vitrail.weights.weight_files import load_weight_file, match_cards

REAL = Path(os.environ.get("VITRAIL_DINOV2", Path(__file__).parents[2] / "shared/weights/dinov2-small-saliency"))
real_file = pytest.mark.skipif(
    not REAL.is_dir(), reason="needs the DINOv2 checkpoint, whose folder VITRAIL_DINOV2 names"
)


# Cards


def test_every_card_describes_a_vit_and_its_preprocessing():
    assert len(load_cards()) > 400
    for card in load_cards().values():
        config, preprocess = card.build_config(), card.build_preprocess()
        assert preprocess.channels == config.channels
        assert not any(side % config.patch for side in preprocess.image_size)
        assert len(card.list_classes()) == (config.classes if card.labels else 0)
        assert card.license
        assert card.source
        assert set(card.accuracy) <= {"top1", "top5"}


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_torchvisions_cards_equal_torchvisions_metadata(name: str):
    for weights in torchvision.models.get_model_weights(name):
        tag = weights.name.removeprefix("IMAGENET1K_").lower()
        card = find_card(f"torchvision/{name}" + ("" if tag == "v1" else f".{tag}"))
        transforms = weights.transforms()
        assert card.source == weights.url
        assert card.file_name.rsplit("-")[1].startswith(card.sha256)
        assert card.preprocess["image_size"] == [transforms.crop_size[0]] * 2
        assert round(transforms.crop_size[0] / card.preprocess["crop_fraction"]) == transforms.resize_size[0]
        assert card.preprocess["interpolation"] == transforms.interpolation.value
        assert (card.preprocess["mean"], card.preprocess["std"]) == (transforms.mean, transforms.std)
        assert card.accuracy["top1"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


TIMM_CHECKPOINTS = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_384.fb_in22k_ft_in1k",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_little_patch16_reg4_gap_256.sbb_in1k",
]


@pytest.mark.parametrize("name", TIMM_CHECKPOINTS)
def test_timms_cards_equal_timms_metadata(name: str):
    cfg = timm.models.get_pretrained_cfg(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=cfg.num_classes)
    card = find_card(f"timm/{name}")
    layout, config = read_timm_model(model)
    assert (card.layout, config_to_json(card.build_config()) | {"image_size": 0}) == (
        layout,
        config_to_json(config) | {"image_size": 0},
    )
    assert card.build_config().image_size == cfg.input_size[1]
    assert tuple(card.preprocess["mean"]) == cfg.mean
    assert card.preprocess["interpolation"] == cfg.interpolation
    theirs = {key: tensor.shape for key, tensor in model.state_dict().items()}
    ours = {
        key: tensor.shape
        for key, tensor in export_weights(LAYOUTS[layout], "", config, meta_state_dict(config)).items()
    }
    assert ours == theirs


def test_imagenet_has_a_thousand_names_in_order():
    assert len(set(load_imagenet_classes())) == 1000
    assert load_imagenet_classes()[0] == "tench"
    assert load_imagenet_classes()[207] == "golden retriever"


# Files


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's own ViT-B/16 with random weights, saved as torch saves."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("full") / "vit_b_16.pth"
    torch.save(torchvision.models.vit_b_16().state_dict(), path)
    return path


def test_a_pretrained_vit_b_16_from_its_file(full_size: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It has torchvision's logits on a photograph, and torchvision's class names."""
    photo = tmp_path / "photo.jpg"
    Image.fromarray(sklearn.datasets.load_sample_image("china.jpg")).save(photo, quality=95)
    clf = vitrail.load(f"torchvision/vit_b_16@{full_size}", torch_files=True)
    model = torchvision.models.vit_b_16().eval()
    model.load_state_dict(torch.load(full_size, weights_only=True))
    weights = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1
    with torch.inference_mode():
        expected = model(weights.transforms()(Image.open(photo))[None])
    logits = clf.logits(clf.read_image(photo)[None])
    assert (logits - expected).abs().max() < 1e-4
    top = clf.predict(photo, top=5)
    assert [prediction.label for prediction in top] == [clf.classes[i] for i in expected[0].topk(5).indices]
    assert main(["predict", f"torchvision/vit_b_16@{full_size}", str(photo), "--torch-files", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in document["predictions"][0]["top"]] == [row.label for row in top]


def test_a_file_of_torchs_format_needs_an_option_or_a_known_hash(full_size: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError, match="can carry code") as caught:
        vitrail.load(full_size)
    assert "--torch-files" in str(caught.value)
    assert main(["inspect", str(full_size), "--torch-files", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layouts"] == ["torchvision's ViT"]
    assert facts["sizes"] == ["B/16"]
    assert facts["cards"] == ["torchvision/vit_b_16", "torchvision/vit_b_16.swag_linear_v1"]


def test_a_file_that_matches_several_cards_names_them(full_size: Path):
    with pytest.raises(
        UsageError, match="could be torchvision/vit_b_16, torchvision/vit_b_16.swag_linear_v1"
    ) as caught:
        vitrail.load(full_size, torch_files=True)
    assert "torchvision/vit_b_16@vit_b_16.pth" in str(caught.value)


class Evil:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Evil.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["zip", "bare", "archive"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, kind: str, protocol: int):
    Evil.marker = tmp_path / "ran"
    path = tmp_path / "weights.pth"
    if kind == "zip":
        torch.save({"model": Evil()}, path, pickle_protocol=protocol)
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("model/data.pkl", pickle.dumps({"model": Evil()}, protocol=protocol))
            file.writestr("model/constants.pkl", pickle.dumps(()))
    else:
        path.write_bytes(pickle.dumps({"model": Evil()}, protocol=protocol))
    for torch_files in (False, True):
        with pytest.raises(VitrailError) as caught:
            vitrail.load(path, torch_files=torch_files)
        assert caught.value.hint
    with pytest.raises(VitrailError, match="nothing in it was run"):
        read_tensors(path, torch_files=True)
    assert not Evil.marker.exists()


def test_objects_in_an_npz_are_refused(tmp_path: Path):
    Evil.marker = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", a=np.array([Evil()], dtype=object))
    with pytest.raises(VitrailError, match="plain arrays"):
        vitrail.load(tmp_path / "x.npz")
    assert not Evil.marker.exists()


DAMAGES = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "noise": lambda data: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_a_damaged_file_is_reported_as_damaged(tmp_path: Path, suffix: str, damage: str):
    state = build_torchvision().state_dict()
    buffer = io.BytesIO()
    if suffix == ".safetensors":
        save_file(state, tmp_path / "whole.safetensors")
        buffer.write((tmp_path / "whole.safetensors").read_bytes())
    elif suffix == ".npz":
        np.savez(buffer, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        torch.save(state, buffer)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(DAMAGES[damage](buffer.getvalue()))
    with pytest.raises(VitrailError) as caught:
        vitrail.load(path, torch_files=True)
    assert "damaged" in str(caught.value) or "cut short" in str(caught.value)


class PickledModule:
    """A module as TorchScript pickles it."""

    def __init__(self, **attributes: object):
        self.__dict__.update(attributes)


class PickledStorage:
    """The storage of a tensor."""


class PickledTensor:
    """A tensor as torch pickles it."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (PickledStorage(), 0, (1,), (1,), False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, item: object) -> object:
        return ("storage", torch.FloatStorage, "0", "cpu", 1) if isinstance(item, PickledStorage) else None


def make_archive(top: PickledModule) -> bytes:
    description = io.BytesIO()
    Pickler(description, protocol=2).dump(top)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(
            "m/data.pkl", description.getvalue().replace(f"c{__name__}\nPickledModule\n".encode(), b"c__torch__\nP\n")
        )
        file.writestr("m/constants.pkl", b"")
        file.writestr("m/data/0", bytes(4))
    return buffer.getvalue()


def nest_in_itself() -> bytes:
    top = PickledModule(weight=PickledTensor())
    top.__dict__["inner"] = top
    return make_archive(top)


def nest_exponentially() -> bytes:
    top = PickledModule(weight=PickledTensor())
    for _ in range(200):
        top = PickledModule(a=top, b=top)
    return make_archive(top)


def make_npz(damage: Callable[[bytearray, int, int], None]) -> bytes:
    """Returns an `.npz` file changed by `damage`, which gets its bytes and the offsets of its two headers."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(1000))
    data = bytearray(buffer.getvalue())
    damage(data, data.index(b"PK\3\4"), data.index(b"PK\1\2"))
    return bytes(data)


def mark_encrypted(data: bytearray, first: int, second: int) -> None:
    data[first + 6] |= 1
    data[second + 8] |= 1


def corrupt_stream(data: bytearray, first: int, second: int) -> None:
    data[first + 60 : first + 80] = b"\xff" * 20


HOSTILE = {  # suffix, a function of the bytes, the error
    "a module in itself": (".pt", nest_in_itself, "matches no known checkpoint"),
    "exponentially nested": (".pt", nest_exponentially, "matches no known checkpoint"),
    "a number for a module": (".pt", lambda: make_archive(PickledModule(inner=5)), "matches no known checkpoint"),
    "a corrupt stream": (".npz", lambda: make_npz(corrupt_stream), "cut short or not an .npz"),
    "encrypted": (".npz", lambda: make_npz(mark_encrypted), "cut short or not an .npz"),
    "no dimensions": (".safetensors", lambda: save({"norm.weight": torch.tensor(1.0)}), "matches no known checkpoint"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, case: str):
    suffix, make_bytes, sentence = HOSTILE[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make_bytes())
    with pytest.raises(VitrailError, match=sentence):
        vitrail.load(path, torch_files=True)


def test_a_tensor_whose_name_is_not_a_string_is_refused(tmp_path: Path):
    top = PickledModule(weight=PickledTensor())
    (tmp_path / "m.pt").write_bytes(make_archive(top))
    assert set(read_tensors(tmp_path / "m.pt", torch_files=True)) == {"weight"}
    top.__dict__[5] = PickledTensor()  # type: ignore[index]
    (tmp_path / "m.pt").write_bytes(make_archive(top))
    with pytest.raises(VitrailError, match="nothing in it was run"):
        read_tensors(tmp_path / "m.pt", torch_files=True)


def test_another_architecture_is_refused(tmp_path: Path):
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(VitrailError, match="matches no known checkpoint") as caught:
        vitrail.load(tmp_path / "model.safetensors")
    assert "Vision Transformers only" in str(caught.value)
    with pytest.raises(VitrailError, match="not named as in"):
        vitrail.load(f"torchvision/vit_b_16@{tmp_path / 'model.safetensors'}")
    facts = inspect_file(tmp_path / "model.safetensors")
    assert (facts["layouts"], facts["cards"]) == ([], [])
    hf.ResNetModel(hf.ResNetConfig(depths=[1, 1, 1, 1])).save_pretrained(tmp_path / "hub")
    with pytest.raises(VitrailError, match="'resnet' is not a ViT that vitrail knows"):
        vitrail.load(tmp_path / "hub")


TINY_HF = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = hf.ViTConfig(**TINY_HF, id2label={0: "ant", 1: "bee"})
    hf.ViTForImageClassification(config).save_pretrained(tmp_path / "tiny")
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_hub_folder_is_a_classifier_with_class_names(hub_folder: Path):
    clf = vitrail.load(hub_folder)
    assert clf.classes == ("ant", "bee")
    assert clf.preprocess.image_size == (32, 32)


CONFIGS = {
    "no config": (None, "has no classifier.safetensors"),
    "not JSON": ("{", "cannot be read"),
    "a list": ("[]", "not a JSON object"),
    "too deep": ("[" * 100_000, "cannot be read"),
    "a gap": ({"hidden_size": None}, "width is None"),
    "absent": ({"hidden_size": ...}, "lacks 'hidden_size'"),
    "heads": ({"num_attention_heads": 5}, "does not divide into 5 heads"),
    "enormous": ({"num_hidden_layers": 10**6}, "lacks the tensor"),
    "wider": ({"hidden_size": 64}, "expected"),
    "activation": ({"hidden_act": "gleu"}, "'gleu' is not known"),
    "negative": ({"patch_size": -8}, "patch"),
    "beyond counting": ({"hidden_size": 2**62}, "no machine can hold"),
    "one size": ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3]}}, "impossible"),
    "without end": ({"architecture": "vit_tiny_patch16_224", "model_args": {"mlp_ratio": math.inf}}, "impossible"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_impossible_config_is_refused(hub_folder: Path, case: str):
    change, sentence = CONFIGS[case]
    path = hub_folder / "config.json"
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        document = {**json.loads(path.read_text()), **change}
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))
    with pytest.raises(VitrailError) as caught:
        vitrail.load(hub_folder)
    assert sentence in str(caught.value)


def test_sharded_weights_are_read_by_their_index_inside_the_folder_only(hub_folder: Path, tmp_path: Path):
    tensors = load_file(hub_folder / "model.safetensors")
    expected = vitrail.load(hub_folder).vit.state_dict()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, keys in shards.items():
        save_file({name: tensors[name] for name in keys}, hub_folder / file)
    (hub_folder / "model.safetensors").unlink()
    index = hub_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, keys in shards.items() for name in keys}}))
    state = vitrail.load(hub_folder).vit.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    save_file(tensors, tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    with pytest.raises(VitrailError, match="outside its folder"):
        vitrail.load(hub_folder)


# Names and the network


def test_an_unknown_name_gets_the_nearest_as_a_hint(capsys: pytest.CaptureFixture[str]):
    assert main(["predict", "torchvision/vit_b16", "x.png", "--json"]) in (1, 2)
    assert "torchvision/vit_b_16" in json.loads(capsys.readouterr().out)["hint"]
    with pytest.raises(UsageError, match="is several checkpoints"):
        vitrail.load("timm/vit_base_patch16_224")


def test_offline_the_cache_is_used_or_the_error_names_the_path_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_size: Path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail_to_connect(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", fail_to_connect)
    monkeypatch.setattr(socket, "getaddrinfo", fail_to_connect)
    with pytest.raises(VitrailError, match="not in the cache and cannot be downloaded") as caught:
        vitrail.load("torchvision/vit_b_16")
    assert str(tmp_path / "hub/checkpoints/vit_b_16-c867db91.pth") in str(caught.value)
    cached = tmp_path / "hub/checkpoints/vit_b_16-c867db91.pth"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(full_size.read_bytes())
    assert len(vitrail.load("torchvision/vit_b_16").classes) == 1000


def test_a_hub_id_is_loaded_from_the_cache_or_reported_as_missing(
    tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VitrailError, match="not in the cache and cannot be downloaded"):
        vitrail.load("owner/tiny")
    snapshot = tmp_path / "cache/models--owner--tiny/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    hub_folder.rename(snapshot)
    refs = tmp_path / "cache/models--owner--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert vitrail.load("owner/tiny").classes == ("ant", "bee")


# Features without classes


def test_a_backbone_cannot_predict_but_can_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hf.ViTModel(hf.ViTConfig(**TINY_HF)).save_pretrained(tmp_path / "tiny")
    clf = vitrail.load(tmp_path / "tiny")
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="has no classes"):
        clf.predict(tmp_path / "x.png")
    assert main(["predict", str(tmp_path / "tiny"), str(tmp_path / "x.png"), "--json"]) == 2
    assert "vitrail probe" in json.loads(capsys.readouterr().out)["hint"]
    clf.save(tmp_path / "saved.safetensors")
    assert vitrail.load(tmp_path / "saved.safetensors").classes == ()


# A real checkpoint


@real_file
def test_a_real_checkpoint_equals_transformers_on_photographs():
    clf = vitrail.load(REAL)
    theirs = hf.AutoModel.from_pretrained(REAL, dtype=torch.float32).eval()
    photographs = sklearn.datasets.load_sample_images().images
    images = torch.stack([clf.read_image(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in photographs])
    x = clf.preprocess.normalize(images)
    with torch.inference_mode():
        for size in (x, x[:, :, :112, :196]):
            expected = theirs(size).last_hidden_state
            assert (clf.vit.tokens(size) - expected).abs().max() < 1e-4
    with torch.inference_mode(), vitrail.recording(clf.vit) as record:
        clf.vit(x)
        assert record.attention(-1, rows=0)[..., 1:].unflatten(-1, (16, 16)).shape == (2, 6, 1, 16, 16)
    (card, _), *others = match_cards(read_tensors(REAL / "model.safetensors"))
    assert (card.name, others) == ("facebook/dinov2-small", [])
    loaded = load_weight_file(REAL / "model.safetensors")
    assert loaded.config == clf.vit.config


# Preprocessing


def write_crops(folder: Path) -> list[Path]:
    """Writes fifty crops of two photographs: JPEG, PNG, gray, with an alpha channel, and rotated by EXIF."""
    generator = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    files = []
    for index in range(50):
        photograph = sources[index % 2]
        left, top = generator.integers(0, 200), generator.integers(0, 100)
        crop = photograph.crop(
            (left, top, left + int(generator.integers(60, 420)), top + int(generator.integers(60, 320)))
        )
        kind = ("jpg", "png", "gray", "alpha", "rotated")[index % 5]
        path = folder / f"{index}.{'jpg' if kind in ('jpg', 'rotated') else 'png'}"
        if kind == "gray":
            crop.convert("L").save(path)
        elif kind == "alpha":
            crop.putalpha(Image.linear_gradient("L").resize(crop.size))
            crop.save(path)
        elif kind == "rotated":
            exif = Image.Exif()
            exif[0x0112] = int(generator.integers(2, 9))
            crop.save(path, exif=exif)
        else:
            crop.save(path)
        files.append(path)
    return files


def make_hf_processor(kind: str, **options: object):
    processor = getattr(hf, kind)(**options)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def make_timm_transform(name: str):
    return timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    )


NORM = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
PROCESSORS = {
    "torchvision/vit_b_16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms(),
    "torchvision/vit_l_16": torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1.transforms(),
    "torchvision/vit_b_16.swag_e2e_v1": torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms(),
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": make_timm_transform("vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "timm/deit3_base_patch16_384.fb_in1k": make_timm_transform("deit3_base_patch16_384.fb_in1k"),
    "timm/vit_base_patch16_siglip_224.webli": make_timm_transform("vit_base_patch16_siglip_224.webli"),
    "timm/vit_small_patch14_dinov2.lvd142m": make_timm_transform("vit_small_patch14_dinov2.lvd142m"),
    "google/vit-base-patch16-224": make_hf_processor("ViTImageProcessor"),
    "facebook/dinov2-small": make_hf_processor("BitImageProcessor", size={"shortest_edge": 256}, **NORM),
    "facebook/deit-base-patch16-224": make_hf_processor("DeiTImageProcessor", **NORM),
    "openai/clip-vit-base-patch32": make_hf_processor("CLIPImageProcessor"),
    "google/siglip-base-patch16-224": make_hf_processor("SiglipImageProcessor"),
}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_crops(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_equals_the_references(name: str, crops: list[Path]):
    """Exact to a pixel level. Rotation by EXIF and the background, which the references lack, are applied for them."""
    preprocess = find_card(name).build_preprocess()
    std = torch.tensor(preprocess.std)[:, None, None]
    for path in crops:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode == "RGBA":
            image = Image.fromarray(decode(path, 3).permute(1, 2, 0).numpy())
        expected = PROCESSORS[name](image.convert("RGB"))
        pixels = preprocess.normalize(preprocess.fit_image(decode(path, 3))[None])[0]
        assert pixels.shape == expected.shape
        assert ((pixels - expected) * std * 255).abs().max() < 1e-3, path.name


def test_an_npz_with_a_path_outside_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("../../evil.npy", b"not an array")
    with pytest.raises(VitrailError):
        vitrail.load(tmp_path / "x.npz")
