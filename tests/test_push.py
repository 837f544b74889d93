"""Pushing exported folders: the hub's real client against a local server."""

from pathlib import Path

import pytest
import torch

import vitrail
from hub_server import TOKEN, Handler, Hub, Repository, hang, run_hub, use_hub
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.push import card_for_hub, check_push, push_folder

NAME = "me/tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's, from its HTTP library


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(width=64, depth=1, heads=4, mlp_width=128, patch=8, image_size=32, classes=2)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    Classifier(ViT(config), ("ant", "bee"), Preprocess(image_size=(32, 32), fit="stretch")).save(path)
    return path


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "timm"
    assert main(["export", str(model), "--format", "timm", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with run_hub() as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_an_export_is_pushed_and_loads_from_the_hub(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "timm"
    arguments = ["export", str(model), "--format", "timm", "--out", str(out), "--push", NAME, "--private"]
    assert main(arguments) == 0
    assert f"pushed: {hub.url}/{NAME}" in capsys.readouterr().out
    repository = hub.repositories[NAME]
    assert repository.private
    files = repository.commits[repository.refs["main"]]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert f'timm.create_model("hf-hub:{NAME}", pretrained=True)' in card and "local-dir" not in card
    assert str(tmp_path) not in card and "path/to/folder" not in card
    assert torch.equal(vitrail.load(NAME).vit.head.weight, vitrail.load(model).vit.head.weight)


def test_what_was_exported_is_pushed_later_and_again(hub: Hub, exported: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(exported), NAME]) == 0
    assert main(["push", str(exported), NAME, "--json"]) == 0
    assert f'"pushed": "{hub.url}/{NAME}"' in capsys.readouterr().out
    assert vitrail.load(NAME).classes == ("ant", "bee")
    assert 'local-dir:path/to/folder"' in (exported / "README.md").read_text()


def test_a_failed_push_is_repeated_with_the_same_command(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "timm"
    arguments = ["export", str(model), "--format", "timm", "--out", str(out), "--push", NAME]

    def fail(handler: Handler, path: str) -> bool:
        if "/commit/" not in path:
            return False
        handler.answer_error(403, message="quota")
        return True

    hub.fault = fail
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "was not uploaded: your login may not write to me/tiny" in error
    assert f"repeat: vitrail push {out} {NAME}" in error
    hub.fault = None
    assert main(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    assert vitrail.load(NAME).classes == ("ant", "bee")
    (out / "config.json").write_text("{}")
    assert main(arguments) == 2
    assert "already exists and holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("not installed", "huggingface_hub is not installed"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no login", "you are not logged in to the Hugging Face hub"),
        ("bad token", "the hub does not accept your token"),
        ("reading token", "your token can only read"),
        ("another owner", "your login may not write to other"),
        ("no owner", "'tiny' is not the name of a repository"),
        ("wrong name", "'me/ti..ny' is not the name of a repository"),
        ("public", "me/tiny exists and is public"),
        ("hangs", "cannot be used"),
        ("broken", "cannot be used"),
    ],
)
def test_a_push_that_cannot_succeed_is_refused_before_the_export(
    hub: Hub, model: Path, tmp_path: Path, case: str, sentence: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    import sys

    import huggingface_hub.constants as constants

    name, private = NAME, []
    if case == "not installed":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    elif case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "no login":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "bad token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif case == "reading token":
        hub.role = "read"
    elif case == "public":
        hub.repositories[NAME] = Repository()
        hub.repositories[NAME].commit({})
        private = ["--private"]
    elif case in ("hangs", "broken"):
        monkeypatch.setattr("vitrail.exporting.push.time_limit_s", lambda hub: 0.2)
        answer = hang if case == "hangs" else lambda handler: handler.answer_error(503)
        hub.fault = lambda handler, path: answer(handler) or True
    else:
        name = {"another owner": "other/tiny", "no owner": "tiny", "wrong name": "me/ti..ny"}[case]
    out = tmp_path / "timm"
    assert main(["export", str(model), "--format", "timm", "--out", str(out), "--push", name, *private]) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error and "hint: " in error and "Traceback" not in error
    assert not out.exists()
    if case in ("no login", "bad token", "reading token"):
        assert "run hf auth login, or set HF_TOKEN" in error
    assert not any(method in ("POST", "PUT") for method, _, _ in hub.requests)


def test_an_organization_and_a_fine_grained_token_may_push(hub: Hub):
    check_push("team/tiny")
    hub.role = "fineGrained"
    check_push("other/tiny")


def test_only_exported_folders_are_pushed(hub: Hub, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="there is no folder|not an export"):
            push_folder(folder, NAME)
    for name in ("model.safetensors", "README.md", "config.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    (tmp_path / ".private").write_text("secret")
    (tmp_path / "notes").mkdir()
    push_folder(tmp_path, NAME)
    assert "not uploaded: .private, notes" in capsys.readouterr().err
    repository = hub.repositories[NAME]
    assert ".private" not in repository.commits[repository.refs["main"]]


def test_a_card_of_an_earlier_version_names_the_repository_too(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text(
        'timm.create_model("local-dir:/home/me/out", pretrained=True).eval()\n'
        'transformers.ViTForImageClassification.from_pretrained("/home/me/out").eval()\n'
        'vit.load_state_dict(safetensors.torch.load_file("/home/me/out/model.safetensors"))\n'
    )
    text = card_for_hub(card, NAME)
    assert "/home/me" not in text
    assert '"hf-hub:me/tiny"' in text and 'from_pretrained("me/tiny")' in text
    assert 'load_file(huggingface_hub.hf_hub_download("me/tiny", "model.safetensors"))' in text


def test_an_upload_that_hangs_ends(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vitrail.exporting.push.UPLOAD_LIMIT_S", 0.2)
    hub.fault = lambda handler, path: "/commit/" in path and not hang(handler)
    with pytest.raises(VitrailError, match="was not uploaded"):
        push_folder(exported, NAME)
    hub.fault = None
    push_folder(exported, NAME)
