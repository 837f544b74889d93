"""Public weights: the cards, the real file, what is refused, and what is said without a network."""

import io
import json
import math
import os
import pickle
import socket
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

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
from vitrail.weights.hub import find_cached_folder
from vitrail.weights.inspection import inspect_file
from vitrail.weights.layouts import LAYOUTS
from vitrail.weights.tensor_files import read_tensors
from vitrail.weights.weight_files import load_weight_file, match_cards

REAL = Path(os.environ.get("VITRAIL_DINOV2", Path(__file__).parents[2] / "shared/weights/dinov2-small-saliency"))
real_file = pytest.mark.skipif(not REAL.is_dir(), reason="the real DINOv2 file is not here; VITRAIL_DINOV2 says where")


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
def test_torchvisions_cards_say_what_torchvision_says(name: str):
    for weights in torchvision.models.get_model_weights(name):
        tag = weights.name.removeprefix("IMAGENET1K_").lower()
        card = find_card(f"torchvision/{name}" + ("" if tag == "v1" else f".{tag}"))
        prepared = weights.transforms()
        assert card.source == weights.url
        assert card.file_name.rsplit("-")[1].startswith(card.sha256)
        assert card.preprocess["image_size"] == [prepared.crop_size[0]] * 2
        assert round(prepared.crop_size[0] / card.preprocess["crop_fraction"]) == prepared.resize_size[0]
        assert card.preprocess["interpolation"] == prepared.interpolation.value
        assert (card.preprocess["mean"], card.preprocess["std"]) == (prepared.mean, prepared.std)
        assert card.accuracy["top1"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


TIMM = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_384.fb_in22k_ft_in1k",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_little_patch16_reg4_gap_256.sbb_in1k",
]


@pytest.mark.parametrize("name", TIMM)
def test_timms_cards_say_what_timm_says(name: str):
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


def test_the_names_of_imagenet_are_a_thousand_and_in_order():
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


def test_the_first_seeds_three_lines(full_size: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A pretrained ViT-B/16 from its file: torchvision's logits on a photograph, and the names of its classes."""
    photo = tmp_path / "photo.jpg"
    Image.fromarray(sklearn.datasets.load_sample_image("china.jpg")).save(photo, quality=95)
    clf = vitrail.load(f"torchvision/vit_b_16@{full_size}", torch_files=True)
    model = torchvision.models.vit_b_16().eval()
    model.load_state_dict(torch.load(full_size, weights_only=True))
    weights = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1
    with torch.inference_mode():
        expected = model(weights.transforms()(Image.open(photo))[None])
    found = clf.logits(clf.read_image(photo)[None])
    assert (found - expected).abs().max() < 1e-4
    top = clf.predict(photo, top=5)
    assert [each.label for each in top] == [clf.classes[i] for i in expected[0].topk(5).indices]
    assert main(["predict", f"torchvision/vit_b_16@{full_size}", str(photo), "--torch-files", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["label"] for each in document["predictions"][0]["top"]] == [each.label for each in top]


def test_a_file_of_torchs_own_needs_a_word_or_a_pinned_hash(full_size: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UsageError, match="can carry code") as caught:
        vitrail.load(full_size)
    assert "--torch-files" in str(caught.value)
    assert main(["inspect", str(full_size), "--torch-files", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layouts"] == ["torchvision's ViT"]
    assert facts["sizes"] == ["B/16"]
    assert facts["cards"] == ["torchvision/vit_b_16", "torchvision/vit_b_16.swag_linear_v1"]


def test_a_file_that_several_cards_fit_asks_which(full_size: Path):
    with pytest.raises(
        UsageError, match="could be torchvision/vit_b_16, torchvision/vit_b_16.swag_linear_v1"
    ) as caught:
        vitrail.load(full_size, torch_files=True)
    assert "torchvision/vit_b_16@vit_b_16.pth" in str(caught.value)


class Evil:
    """What an attacker pickles."""

    def __reduce__(self):
        return os.system, (f"touch {Evil.witness}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["zip", "bare", "archive"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, kind: str, protocol: int):
    Evil.witness = tmp_path / "ran"
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
    assert not Evil.witness.exists()


def test_objects_in_an_npz_are_refused(tmp_path: Path):
    Evil.witness = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", a=np.array([Evil()], dtype=object))
    with pytest.raises(VitrailError, match="plain arrays"):
        vitrail.load(tmp_path / "x.npz")
    assert not Evil.witness.exists()


DAMAGES = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "noise": lambda data: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_damaged_files_are_said_to_be_so(tmp_path: Path, suffix: str, damage: str):
    state = build_torchvision().state_dict()
    whole = io.BytesIO()
    if suffix == ".safetensors":
        save_file(state, tmp_path / "whole.safetensors")
        whole.write((tmp_path / "whole.safetensors").read_bytes())
    elif suffix == ".npz":
        np.savez(whole, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        torch.save(state, whole)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(DAMAGES[damage](whole.getvalue()))
    with pytest.raises(VitrailError) as caught:
        vitrail.load(path, torch_files=True)
    assert "damaged" in str(caught.value) or "cut short" in str(caught.value)


class Part:
    """A module as TorchScript pickles it."""

    def __init__(self, **known: object):
        self.__dict__.update(known)


class Stored:
    """The storage of a tensor."""


class Rebuilt:
    """A tensor as torch pickles it."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Stored(), 0, (1,), (1,), False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, found: object) -> object:
        return ("storage", torch.FloatStorage, "0", "cpu", 1) if isinstance(found, Stored) else None


def archive(top: Part) -> bytes:
    description = io.BytesIO()
    Pickler(description, protocol=2).dump(top)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("m/data.pkl", description.getvalue().replace(f"c{__name__}\nPart\n".encode(), b"c__torch__\nP\n"))
        file.writestr("m/constants.pkl", b"")
        file.writestr("m/data/0", bytes(4))
    return whole.getvalue()


def itself() -> bytes:
    top = Part(weight=Rebuilt())
    top.__dict__["inner"] = top
    return archive(top)


def pairs_of_pairs() -> bytes:
    top = Part(weight=Rebuilt())
    for _ in range(200):
        top = Part(a=top, b=top)
    return archive(top)


def npz(change: Callable[[bytearray, int, int], None]) -> bytes:
    """A damaged `.npz`: `change` gets it with the places of its two headers."""
    whole = io.BytesIO()
    np.savez_compressed(whole, a=np.arange(1000))
    data = bytearray(whole.getvalue())
    change(data, data.index(b"PK\3\4"), data.index(b"PK\1\2"))
    return bytes(data)


def encrypted(data: bytearray, first: int, second: int) -> None:
    data[first + 6] |= 1
    data[second + 8] |= 1


def torn(data: bytearray, first: int, second: int) -> None:
    data[first + 60 : first + 80] = b"\xff" * 20


HOSTILE = {  # suffix, bytes, what is said
    "a module in itself": (".pt", itself, "matches no known checkpoint"),
    "pairs of pairs": (".pt", pairs_of_pairs, "matches no known checkpoint"),
    "a number for a module": (".pt", lambda: archive(Part(inner=5)), "matches no known checkpoint"),
    "a torn stream": (".npz", lambda: npz(torn), "cut short or not an .npz"),
    "encrypted": (".npz", lambda: npz(encrypted), "cut short or not an .npz"),
    "no dimensions": (".safetensors", lambda: save({"norm.weight": torch.tensor(1.0)}), "matches no known checkpoint"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_a_sentence(tmp_path: Path, case: str):
    suffix, made, sentence = HOSTILE[case]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(made())
    with pytest.raises(VitrailError, match=sentence):
        vitrail.load(path, torch_files=True)


def test_a_tensor_whose_name_is_no_text_is_refused(tmp_path: Path):
    top = Part(weight=Rebuilt())
    (tmp_path / "m.pt").write_bytes(archive(top))
    assert set(read_tensors(tmp_path / "m.pt", torch_files=True)) == {"weight"}
    top.__dict__[5] = Rebuilt()  # type: ignore[index]
    (tmp_path / "m.pt").write_bytes(archive(top))
    with pytest.raises(VitrailError, match="nothing in it was run"):
        read_tensors(tmp_path / "m.pt", torch_files=True)


def test_another_architecture_is_named_as_such(tmp_path: Path):
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


def test_a_hub_folder_is_a_classifier_with_its_names(hub_folder: Path):
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
def test_a_config_that_does_not_fit_is_one_sentence(hub_folder: Path, case: str):
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


def test_shards_are_read_by_their_index_and_never_outside_the_folder(hub_folder: Path, tmp_path: Path):
    tensors = load_file(hub_folder / "model.safetensors")
    expected = vitrail.load(hub_folder).vit.state_dict()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, hub_folder / file)
    (hub_folder / "model.safetensors").unlink()
    index = hub_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, some in parts.items() for name in some}}))
    found = vitrail.load(hub_folder).vit.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    save_file(tensors, tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))
    with pytest.raises(VitrailError, match="outside its folder"):
        vitrail.load(hub_folder)


# Names and the network


def test_a_wrong_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["predict", "torchvision/vit_b16", "x.png", "--json"]) in (1, 2)
    assert "torchvision/vit_b_16" in json.loads(capsys.readouterr().out)["hint"]
    with pytest.raises(UsageError, match="is several checkpoints"):
        vitrail.load("timm/vit_base_patch16_224")


def test_without_a_network_the_cache_serves_or_the_place_for_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_size: Path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(VitrailError, match="not in the cache and cannot be downloaded") as caught:
        vitrail.load("torchvision/vit_b_16")
    assert str(tmp_path / "hub/checkpoints/vit_b_16-c867db91.pth") in str(caught.value)
    kept = tmp_path / "hub/checkpoints/vit_b_16-c867db91.pth"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(full_size.read_bytes())
    assert len(vitrail.load("torchvision/vit_b_16").classes) == 1000


def test_a_hub_id_is_served_from_the_cache_or_said_to_be_missing(
    tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VitrailError, match="not in the cache and cannot be downloaded"):
        vitrail.load("somebody/tiny")
    snapshot = tmp_path / "cache/models--somebody--tiny/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    hub_folder.rename(snapshot)
    refs = tmp_path / "cache/models--somebody--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert vitrail.load("somebody/tiny").classes == ("ant", "bee")


@pytest.fixture
def hub_and_cache(tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository whose weights are in the cache and its preprocessor is not, and a hub that has it."""
    from huggingface_hub import constants

    commit, asked = "a" * 40, []
    cache = tmp_path / "cache/models--somebody--tiny"
    document = json.loads((hub_folder / "preprocessor_config.json").read_text()) | {"image_mean": [0.4, 0.4, 0.4]}
    content = json.dumps(document).encode()
    (hub_folder / "preprocessor_config.json").unlink()
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    (cache / "snapshots").mkdir()
    hub_folder.rename(cache / "snapshots" / commit)

    class Hub(BaseHTTPRequestHandler):
        files: ClassVar = {f"/somebody/tiny/resolve/{commit}/preprocessor_config.json": content}

        def do_HEAD(self) -> None:
            asked.append(self.path)
            found = self.files.get(self.path)
            self.send_response(404 if found is None else 200)
            self.send_header("X-Repo-Commit", commit)
            if found is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(self.files.get(self.path, b""))

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield Hub, asked, cache / "snapshots" / commit
        server.shutdown()


def test_how_images_are_prepared_is_fetched_where_the_cache_lacks_it(hub_and_cache, capsys: pytest.CaptureFixture[str]):
    _, asked, _ = hub_and_cache
    assert vitrail.load("somebody/tiny").preprocess.mean == (0.4, 0.4, 0.4)
    assert asked and "warning" not in capsys.readouterr().err
    asked.clear()
    vitrail.load("somebody/tiny")
    assert not asked


def test_where_it_cannot_be_had_that_is_said(
    hub_and_cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from huggingface_hub import constants

    hub, asked, snapshot = hub_and_cache
    hub.files = {}
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert vitrail.load("somebody/tiny").preprocess.fit == "stretch"
        assert "no preprocessor_config.json of somebody/tiny here" in capsys.readouterr().err
    vitrail.load("somebody/tiny")
    assert asked and "no preprocessor_config.json" in capsys.readouterr().err
    asked.clear()
    vitrail.load("somebody/tiny")  # the cache knows that there is none
    assert not asked and "no preprocessor_config.json" in capsys.readouterr().err
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    index = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert find_cached_folder("somebody/tiny") is None  # a part is missing
    (snapshot / "model-2.safetensors").touch()
    assert find_cached_folder("somebody/tiny") == snapshot


# Features without classes


def test_a_backbone_says_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hf.ViTModel(hf.ViTConfig(**TINY_HF)).save_pretrained(tmp_path / "tiny")
    clf = vitrail.load(tmp_path / "tiny")
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(UsageError, match="knows no classes"):
        clf.predict(tmp_path / "x.png")
    assert main(["predict", str(tmp_path / "tiny"), str(tmp_path / "x.png"), "--json"]) == 2
    assert "vitrail probe" in json.loads(capsys.readouterr().out)["hint"]
    clf.save(tmp_path / "kept.safetensors")
    assert vitrail.load(tmp_path / "kept.safetensors").classes == ()


# The real file


@real_file
def test_the_real_file_equals_transformers_on_real_images():
    clf = vitrail.load(REAL)
    theirs = hf.AutoModel.from_pretrained(REAL, dtype=torch.float32).eval()
    digits = sklearn.datasets.load_sample_images().images
    images = torch.stack([clf.read_image(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in digits])
    x = clf.preprocess.normalize(images)
    with torch.inference_mode():
        for some in (x, x[:, :, :112, :196]):
            expected = theirs(some).last_hidden_state
            assert (clf.vit.tokens(some) - expected).abs().max() < 1e-4
    with torch.inference_mode(), vitrail.recording(clf.vit) as record:
        clf.vit(x)
        assert record.attention(-1, rows=0)[..., 1:].unflatten(-1, (16, 16)).shape == (2, 6, 1, 16, 16)
    (card, _), *others = match_cards(read_tensors(REAL / "model.safetensors"))
    assert (card.name, others) == ("facebook/dinov2-small", [])
    again = load_weight_file(REAL / "model.safetensors")
    assert again.config == clf.vit.config


# Preprocessing


def photographs(folder: Path) -> list[Path]:
    """Fifty files: crops of two photographs as JPEG, PNG, grey, with an alpha channel, and turned by EXIF."""
    generator = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    files = []
    for number in range(50):
        whole = sources[number % 2]
        left, top = generator.integers(0, 200), generator.integers(0, 100)
        crop = whole.crop((left, top, left + int(generator.integers(60, 420)), top + int(generator.integers(60, 320))))
        kind = ("jpg", "png", "grey", "alpha", "turned")[number % 5]
        path = folder / f"{number}.{'jpg' if kind in ('jpg', 'turned') else 'png'}"
        if kind == "grey":
            crop.convert("L").save(path)
        elif kind == "alpha":
            crop.putalpha(Image.linear_gradient("L").resize(crop.size))
            crop.save(path)
        elif kind == "turned":
            exif = Image.Exif()
            exif[0x0112] = int(generator.integers(2, 9))
            crop.save(path, exif=exif)
        else:
            crop.save(path)
        files.append(path)
    return files


def hf_processor(kind: str, **options: object):
    processor = getattr(hf, kind)(**options)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def timm_transform(name: str):
    return timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    )


NORM = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
PROCESSORS = {
    "torchvision/vit_b_16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms(),
    "torchvision/vit_l_16": torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1.transforms(),
    "torchvision/vit_b_16.swag_e2e_v1": torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms(),
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": timm_transform("vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "timm/deit3_base_patch16_384.fb_in1k": timm_transform("deit3_base_patch16_384.fb_in1k"),
    "timm/vit_base_patch16_siglip_224.webli": timm_transform("vit_base_patch16_siglip_224.webli"),
    "timm/vit_small_patch14_dinov2.lvd142m": timm_transform("vit_small_patch14_dinov2.lvd142m"),
    "google/vit-base-patch16-224": hf_processor("ViTImageProcessor"),
    "facebook/dinov2-small": hf_processor("BitImageProcessor", size={"shortest_edge": 256}, **NORM),
    "facebook/deit-base-patch16-224": hf_processor("DeiTImageProcessor", **NORM),
    "openai/clip-vit-base-patch32": hf_processor("CLIPImageProcessor"),
    "google/siglip-base-patch16-224": hf_processor("SiglipImageProcessor"),
}


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_the_reference_does(name: str, fifty: list[Path]):
    """Not a level of difference. The references neither turn by EXIF nor know our background: they get it done."""
    preprocess = find_card(name).build_preprocess()
    std = torch.tensor(preprocess.std)[:, None, None]
    for path in fifty:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode == "RGBA":
            image = Image.fromarray(decode(path, 3).permute(1, 2, 0).numpy())
        expected = PROCESSORS[name](image.convert("RGB"))
        found = preprocess.normalize(preprocess.fit_image(decode(path, 3))[None])[0]
        assert found.shape == expected.shape
        assert ((found - expected) * std * 255).abs().max() < 1e-3, path.name


def test_zip_bombs_and_stray_members_in_npz_do_no_harm(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("../../evil.npy", b"not an array")
    with pytest.raises(VitrailError):
        vitrail.load(tmp_path / "x.npz")
