"""The command line as people and programs use it."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import vitrail
from vitrail import console
from vitrail.cli import main, probe, shard
from vitrail.cli.answer import ANSWER_FILE as ANSWER
from vitrail.cli.main import VERBS, make_parser
from vitrail.cli.parser import Parser
from vitrail.data.shards import writer
from vitrail.errors import is_out_of_memory
from vitrail.evaluation import knn
from vitrail.training.recipe import RECIPE_FIELDS


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict, str]:
    """Exit code, the JSON object on stdout, and stderr."""
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


@pytest.mark.newest
def test_stdout_is_one_json_object_and_nothing_else(make_folder, tmp_path: Path):
    folder = make_folder("photos", 6)
    done = subprocess.run(
        [sys.executable, "-m", "vitrail", "train", str(folder), "--epochs", "1", "--out", str(tmp_path / "r"), "--json",
         "--width", "32", "--depth", "1", "--heads", "2"],
        capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["run"] == str(tmp_path / "r")
    assert {"accuracy", "loss", "images"} <= document["test"].keys()
    assert document["seconds"] > 0
    assert "epoch 1/1" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.newest
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert len(shown.splitlines()) > 5


@pytest.mark.newest
def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitrail {vitrail.__version__}\n"


@pytest.mark.newest
@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["trian"], "no verb 'trian'", "train"),
        (["train", "digits", "--epoch", "3"], "does not take '--epoch'", "--epochs"),
        (["train", "digits", "--epochs", "many"], "invalid int", "--help"),
        (["train", "digits", "--lr", "-1"], "lr is -1.0", None),
        (["train", "digits", "--recipe", "smal"], "no recipe 'smal'", "small"),
        (["train", "digitz"], "'digitz'", "digits"),
        (["train"], "required: DATA", "--help"),
        (["train", "digits", "--width", "50", "--heads", "3"], "width 50 does not divide into 3 heads", None),
        (["evaluate", "nowhere", "digits"], "no run folder or artifact 'nowhere'", "train"),
        (["predict", "nowhere", "x.png"], "no run folder or artifact", None),
        (["inspect", "nowhere.safetensors"], "no file nowhere.safetensors", None),
        (["inspect", "model.pth"], "there is no file model.pth", None),
    ],
)
def test_wrong_use_is_one_sentence_and_a_hint(
    arguments, error, hint, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == (1 if arguments[0] == "inspect" else 2)
    assert captured.out == ""
    first, *rest = captured.err.strip().splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert len(rest) <= 1
    if hint:
        assert rest[0].startswith("hint: ")
        assert hint in rest[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.newest
def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]):
    code, document, _ = ask(capsys, "evaluate", "nowhere", "digits")
    assert code == 2
    assert document["error"].startswith("there is no run folder")


@pytest.mark.newest
def test_predict_and_evaluate_agree_image_by_image(run: vitrail.Run, colors: Path, capsys):
    _, scored, _ = ask(capsys, "evaluate", run.folder, colors)
    _, predicted, _ = ask(capsys, "predict", run.folder, colors / "test", "--batch-size", 7)
    ours = {row["path"]: (row["label"], row["probability"]) for row in scored["predictions"]}
    theirs = {row["path"]: (row["top"][0]["label"], row["top"][0]["probability"]) for row in predicted["predictions"]}
    assert ours.keys() == theirs.keys()
    assert len(ours) == 24
    for path, (label, probability) in ours.items():
        assert theirs[path][0] == label
        assert theirs[path][1] == pytest.approx(probability, abs=1e-6)


def test_predict_gives_a_damaged_file_a_row_of_its_own(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    good = (colors / "test" / "red" / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(good[:50])
    (tmp_path / "c.png").write_bytes(good)
    Image.new("RGB", (1, 40)).save(tmp_path / "d.png")
    code, document, _ = ask(capsys, "predict", run.folder, tmp_path, tmp_path / "gone.png", "--top", 2)
    assert code == 1
    a, b, c, d, gone = document["predictions"]
    for one, other in zip(a["top"], c["top"], strict=True):  # rows of one batch may differ in the last bit
        assert one["label"] == other["label"] and one["probability"] == pytest.approx(other["probability"], abs=1e-6)
    assert a["error"] is None
    assert len(a["top"]) == 2
    assert a["top"][0]["label"] == "red"
    for row, reason in ((b, "damaged or truncated"), (d, "fewer than a patch"), (gone, "no such file")):
        assert row["top"] == []
        assert reason in row["error"]


@pytest.mark.newest
def test_explain_writes_pictures_and_never_over_one(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    image = colors / "test" / "red" / "0.png"
    for expected in ("0.attention.png", "0.attention-2.png"):
        code, document, _ = ask(
            capsys, "explain", run.folder, image, "--method", "attention", "--out", tmp_path / "maps"
        )
        (row,) = document["explanations"]
        assert code == 0
        assert row["label"] == "red"
        assert row["files"] == [str(tmp_path / "maps" / expected)]
        assert len(row["map"]) == 8
        assert len(row["map"][0]) == 8
        assert sum(map(sum, row["map"])) == pytest.approx(1, abs=1e-4)
        Image.open(row["files"][0]).verify()
    code, document, _ = ask(capsys, "explain", run.folder, image, "--out", tmp_path / "maps", "--attention-head", "all")
    assert len(document["explanations"][0]["heads"]) == 2
    code, document, _ = ask(capsys, "explain", run.folder, image, "--method", "rollout", "--out", tmp_path / "maps")
    assert document["explanations"][0]["files"][0].endswith("0.rollout.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "attentoin"], "attentoin"),
        (["--layer", "9"], "no layer 9"),
        (["--attention-head", "7"], "no head 7"),
        (["--attention-head", "first"], "--attention-head is 'first'"),
        (["--method", "rollout", "--attention-head", "0"], "method rollout has no option head"),
        (["--class", "rde"], "no class 'rde'"),
        (["--class", "red", "--against", "rde"], "no class 'rde'"),
        (["--class", "red", "--against", "red"], "is compared with itself"),
        (["--against", "red"], "--against needs --class"),
        (["--query", "3"], "--query is '3'"),
        (["--query", "3,8"], "no patch in row 3, column 8"),
        (["--layer", "last"], "--layer is 'last'"),
        (["--layer", "all", "--attention-head", "all"], "do not fit"),
        (["--layer", "all", "--picture", "overlay"], "--picture overlay is for one map"),
        (["--attention-head", "all", "--smooth"], "--smooth is for one map"),
        (["--method", "balanced", "--layer", "0"], "method libragrad has no option layer"),
    ],
)
def test_explain_refuses_what_the_model_does_not_have(run: vitrail.Run, colors, arguments, message, capsys, tmp_path):
    image = colors / "test" / "red" / "0.png"
    code, document, _ = ask(capsys, "explain", run.folder, image, "--out", tmp_path / "maps", *arguments)
    assert code == 2
    assert message in document["error"]
    assert not (tmp_path / "maps").exists()


def test_check_tells_errors_from_warnings(make_folder, capsys):
    folder = make_folder("mixed", {"train": 6, "val": 3})
    code, document, _ = ask(capsys, "check", folder)
    assert code == 0
    assert (document["images"], document["errors"]) == (18, [])
    assert any("fewer than 10" in warning for warning in document["warnings"])
    (folder / "val" / "red" / "0.png").write_bytes((folder / "train" / "red" / "0.png").read_bytes())
    (folder / "train" / "blue" / "1.png").write_bytes(b"no image")
    (folder / "val" / "mauve").mkdir()
    (folder / "val" / "mauve" / "0.png").write_bytes((folder / "train" / "red" / "1.png").read_bytes())
    code, document, _ = ask(capsys, "check", folder)
    assert code == 1
    assert document["unreadable"] == ["train/blue/1.png"]
    assert any("mauve" in error for error in document["errors"])
    assert any("different splits" in warning for warning in document["warnings"])
    assert any("different classes" in warning for warning in document["warnings"])
    Image.new("RGB", (3, 2)).save(folder / "train" / "red" / "dot.png")
    _, document, _ = ask(capsys, "check", folder)
    assert any("train/red/dot.png with 3x2 pixels" in warning for warning in document["warnings"])


def test_check_of_digits_finds_nothing_wrong(capsys):
    code, document, _ = ask(capsys, "check", "digits")
    assert code == 0
    assert document["images"] == 1797
    assert len(document["classes"]) == 10


def test_inspect_and_models(run: vitrail.Run, capsys):
    _, document, _ = ask(capsys, "inspect", run.folder)
    assert document["kind"] == "vitrail artifact"
    assert document["classes"] == ["blue", "green", "red"]
    assert document["parameters"] == sum(p.numel() for p in run.classifier.vit.parameters())
    _, document, _ = ask(capsys, "models")
    sizes = {row["size"]: row["parameters"] for row in document["sizes"]}
    assert sizes["B"] == 86_566_888  # torchvision's 86,567,656 less the class token's own position, which is folded in
    _, document, _ = ask(capsys, "recipe")
    recipes = {"small", "tutorial", "speedrun-75", "speedrun-90", "finetune", "linear", "lora"}
    assert {row["recipe"] for row in document["recipes"]} == recipes
    _, document, _ = ask(capsys, "recipe", "small")
    assert document["optimizer"] == "muon" and document["batch_size"] is None
    assert main(["recipe", "small"]) == 0
    assert "peak learning rate" in capsys.readouterr().out


def test_people_get_tables(run: vitrail.Run, colors: Path, capsys):
    for arguments in (
        ["evaluate", run.folder, colors],
        ["predict", run.folder, colors / "test"],
        ["inspect", run.folder],
    ):
        assert main([*map(str, arguments)]) == 0
        shown = capsys.readouterr().out
        assert "red" in shown
        assert "{" not in shown


def test_class_names_are_text_and_never_markup(make_folder, tmp_path: Path, capsys):
    folder = make_folder("odd", 6, ("a", "b"))
    names = {"a": "[/x]", "b": "[red]y:cat:"}
    rows = [f"{path.relative_to(folder)},{names[path.parent.name]}" for path in sorted(folder.rglob("*.png"))]
    folder = folder / "odd.csv"
    folder.write_text("path,label\n" + "\n".join(rows))
    arguments = [
        "--out",
        str(tmp_path / "r"),
        "--epochs",
        "1",
        "--width",
        "32",
        "--depth",
        "1",
        "--heads",
        "2",
        "--quiet",
    ]
    assert main(["train", str(folder), *arguments]) == 0
    capsys.readouterr()
    for verb in (
        ["evaluate", tmp_path / "r", folder],
        ["inspect", tmp_path / "r"],
        ["predict", tmp_path / "r", folder.parent],
    ):
        assert main([*map(str, verb)]) == 0
        shown = capsys.readouterr().out
        assert "[/x]" in shown
        assert "[red]y:cat:" in shown


def test_a_reader_that_goes_away_is_no_error(run: vitrail.Run, colors: Path, prepared_vitrail: list[str]):
    evaluate = f"{shlex.join(prepared_vitrail)} evaluate {run.folder} {colors} --json"
    command = f"{evaluate} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize(("arguments", "code"), [(["gone.png"], 1), (["IMAGE"], 0), (["IMAGE", "--top", "0"], 2)])
def test_a_reader_that_goes_away_hides_no_code(run: vitrail.Run, colors, arguments, code, form, monkeypatch):
    arguments = [word.replace("IMAGE", str(colors / "test" / "red" / "0.png")) for word in arguments]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(["predict", str(run.folder), *arguments, *form]) == code


def test_a_pipe_that_breaks_within_the_work_is_an_error(monkeypatch, capsys):
    def work(arguments: object) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            os.write(writer, b"for a process that is gone")
        finally:
            os.close(writer)

    monkeypatch.setattr("vitrail.cli.models.run", work)
    code, document, _ = ask(capsys, "models")
    assert (code, document["error"]) == (1, "Broken pipe")


def test_too_little_memory_is_a_sentence(tmp_path: Path, capsys):
    small = ["--no-check", "--width", "32", "--depth", "1", "--heads", "2"]
    code, document, _ = ask(
        capsys, "train", "digits", *small, "--mlp-width", 10**13, "--out", tmp_path / "run"
    )  # more than any processor can address
    assert (code, document["error"]) == (1, "there is not enough memory")
    assert "--batch-size" in document["hint"]
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_process_of_several_leaves_the_json_to_the_one_that_started_it(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv(ANSWER, str(tmp_path / "answer.json"))
    assert main(["predict", "nowhere", "x.png", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no run folder or artifact 'nowhere'" in captured.err


@pytest.mark.newest
def test_names_that_are_not_utf8(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    strange = os.fsdecode(b"\xff")
    code, document, _ = ask(capsys, "predict", run.folder, f"{strange}.jpg")
    assert (code, document["error"]) == (1, "the command line: the name '\ufffd.jpg' is not UTF-8")
    code, document, err = ask(capsys, "inspect", f"{strange}.safetensors")
    assert (code, document["error"]) == (1, f"there is no file {strange}.safetensors")
    assert r"there is no file \udcff.safetensors" in err
    image, out = colors / "test" / "red" / "0.png", tmp_path / strange
    _, document, _ = ask(capsys, "explain", run.folder, image, "--out", out)
    assert document["explanations"][0]["files"] == [str(out / "0.libragrad.png")]
    assert (out / "0.libragrad.png").is_file()
    assert main(["explain", str(run.folder), str(image), "--out", str(out)]) == 0
    assert r"/\udcff/0.libragrad-2.png" in capsys.readouterr().out


def test_off_a_terminal_work_that_goes_on_says_how_far_it_is(run: vitrail.Run, colors: Path, monkeypatch, capsys):
    arguments = ["predict", str(run.folder), str(colors / "test"), "--batch-size", "8"]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
    assert main(arguments) == 0
    line = r"predicting: (8|16) of 24, [\d,]+ per second, \d:\d\d:\d\d left"
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 2 and all(re.fullmatch(line, each) for each in message)
    with console.progress_bar("scoring", 10) as progress:
        progress.start_from(4)
        assert capsys.readouterr().err == ""  # of those it is not known how long they took
        progress.advance(note="lens")
        assert re.fullmatch(r"scoring: 5 of 10,( [\d,]+ per second,)? 0:00:00 left, lens\n", capsys.readouterr().err)
        monkeypatch.setattr(console, "LINE_INTERVAL_S", 1e9)
        progress.advance()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
        progress.advance(4)
        assert capsys.readouterr().err == ""  # it is over
    with console.progress_bar("listing", None) as progress:
        progress.update(20_000, None)
    assert capsys.readouterr().err.startswith("listing: 20,000, ")
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_shards_are_read_in_place_of_images(run: vitrail.Run, make_folder, tmp_path: Path, capsys):
    folder, shards = make_folder("few", {"train": 3, "test": 1}, ("red", "green")), tmp_path / "shards"
    assert main(["shard", str(folder), "--out", str(shards)]) == 0
    capsys.readouterr()
    tops = {}
    for source in (folder, shards):
        code, document, _ = ask(capsys, "predict", run.folder, source)
        assert code == 0
        tops[source] = sorted((row["top"][0]["probability"], row["top"][0]["label"]) for row in document["predictions"])
    assert len(tops[folder]) == 8
    for (ours, label), (theirs, other) in zip(tops[shards], tops[folder], strict=True):
        assert label == other and ours == pytest.approx(theirs, abs=1e-6)
    code, document, _ = ask(capsys, "explain", run.folder, shards / "test-000000.tar", "--out", tmp_path / "maps")
    assert code == 0
    rows = document["explanations"]
    assert {row["label"] for row in rows} == {"red", "green"}
    assert all(row["path"].startswith(f"{shards}/test-000000.tar:") for row in rows)
    assert len({row["files"][0] for row in rows if Path(row["files"][0]).is_file()}) == 2
    code, document, _ = ask(capsys, "predict", run.folder, shards / "train-000009.tar")
    assert code == 2 and "there is no shard" in document["error"]


@pytest.mark.parametrize("more", [[], ["--layer", "all"]], ids=["one", "layers"])
def test_a_row_has_the_same_keys_whether_the_image_can_be_read(run: vitrail.Run, colors, tmp_path, more, capsys):
    image = colors / "test" / "red" / "0.png"
    arguments = ["--out", tmp_path / "maps", "--method", "attention", *more]
    code, document, _ = ask(capsys, "explain", run.folder, tmp_path / "gone.png", image, *arguments)
    gone, there = document["explanations"]
    assert code == 1
    assert gone.keys() == there.keys()
    assert {name for name, value in gone.items() if value} == {"path", "error"}


def test_a_name_of_many_bytes_is_cut_to_what_a_disk_takes(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    for name in ("漢" * 80, "short"):
        (tmp_path / f"{name}.png").write_bytes((colors / "test" / "red" / "0.png").read_bytes())
    code, document, _ = ask(capsys, "explain", run.folder, tmp_path, "--out", tmp_path / "maps", "--class", "red")
    assert code == 0
    names = sorted(Path(row["files"][0]).name for row in document["explanations"])
    assert names == ["short.libragrad.red.png", "漢" * 66 + ".png"]


@pytest.mark.newest
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "MODEL", "x" * 300 + ".png"],
        ["predict", "x" * 300, "a.png"],
        ["inspect", "x" * 300],
        ["train", "digits", "--recipe", "x" * 300],
        ["train", "digits", "--out", "FILE"],
        ["train", "digits", "--out", "FILE/sub"],
        ["train", "digits", "--out", "FILE", "--resume"],
        ["train", "digits", "--out", "FILE/sub", "--resume"],
        ["train", "digits", "--device", "banana"],
        ["evaluate", "MODEL", "digits", "--device", "meta"],
        ["explain", "MODEL", "a.png", "--attention-head", "²"],
        ["evaluate", "MODEL", "digits"],  # a model of colors, grey digits: unknown classes
    ],
    ids=lambda arguments: " ".join(word[:12] for word in arguments),
)
def test_nothing_ends_in_a_traceback(run: vitrail.Run, arguments, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    arguments = [word.replace("FILE", "file").replace("MODEL", str(run.folder)) for word in arguments]
    code = main(arguments)
    captured = capsys.readouterr()
    assert code in (1, 2)
    if not captured.out:
        assert captured.err.count("error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_names_cannot_steer_the_terminal(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    from dataclasses import replace

    evil = replace(run.classifier, classes=("\x1b[2Jgone", "\x9b31m", "\x07\rred"))
    evil.save(tmp_path / "evil.safetensors")
    table = tmp_path / "evil.csv"
    image = colors / "test" / "red" / "0.png"
    table.write_text("path,label\n" + "".join(f"{image},{name}\n" for name in ("\x1b[2Jgone", "\x9b31m")))
    for arguments in (
        ("predict", tmp_path / "evil.safetensors", image),
        ("evaluate", tmp_path / "evil.safetensors", table),
        ("inspect", tmp_path / "evil.safetensors"),
        ("check", table),
        ("evaluate", run.folder, table),
    ):
        main([str(word) for word in arguments])
        message = "".join(capsys.readouterr())
        assert not set(message) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}, arguments


def test_explain_for_a_class_against_another_by_layers_heads_and_patch(
    run: vitrail.Run, colors: Path, tmp_path, capsys
):
    image = colors / "test" / "red" / "0.png"

    def row(*arguments: str) -> dict:
        code, document, _ = ask(capsys, "explain", run.folder, image, "--out", tmp_path / "maps", *arguments)
        assert code == 0
        (explanation,) = document["explanations"]
        assert all(Path(file).stat().st_size > 1000 for file in explanation["files"])
        return explanation

    default = row()
    assert (default["label"], default["method"], default["signed"]) == ("red", "libragrad", True)
    assert default["files"][0].endswith("0.libragrad.png")
    blue = row("--class", "blue")
    assert (blue["label"], blue["predicted"]) == ("blue", "red")
    assert blue["map"] != default["map"]
    assert row("--class", "blue", "--against", "red")["against"] == "red"
    assert row("--attention-head", "1")["method"] == "attention"
    assert row("--query", "3,4")["query"] == [3, 4]
    assert [each["layer"] for each in row("--layer", "all", "--method", "lens")["layers"]] == [0, 1]
    assert row("--format", "svg", "--picture", "overlay", "--smooth")["files"][0].endswith("0.libragrad.svg")
    for arguments, titles in (("--layer all --attention-head 1", "layer"), ("--layer 1 --attention-head all", "head")):
        drawn = Path(row(*arguments.split(), "--format", "svg")["files"][0]).read_text()
        assert re.findall("<!-- ((?:layer|head) .*) -->", drawn) == [f"{titles} 0", f"{titles} 1"]
    assert "half of it is in" in default["summary"]


def test_explain_names_a_picture_after_any_class(tmp_path: Path, run: vitrail.Run, colors: Path, capsys):
    run.classifier.save(tmp_path / "odd.safetensors")
    odd = vitrail.load(tmp_path / "odd.safetensors")
    odd.classes = ("a/../b", "green", "red")
    odd.save(tmp_path / "odd.safetensors")
    image = colors / "test" / "red" / "0.png"
    _, document, _ = ask(
        capsys, "explain", tmp_path / "odd.safetensors", image, "--class", "a/../b", "--out", tmp_path / "maps"
    )
    assert document["explanations"][0]["files"] == [str(tmp_path / "maps" / "0.libragrad.a_.._b.png")]


def test_faithfulness_prints_a_table_and_writes_json_and_a_picture(run: vitrail.Run, colors: Path, tmp_path, capsys):
    arguments = [
        "faithfulness",
        run.folder,
        colors,
        "--methods",
        "balanced,attention",
        "--max-images",
        12,
        "--steps",
        4,
    ]
    code, document, _ = ask(capsys, *arguments, "--out", tmp_path / "scores")
    assert code == 0
    assert document["images"] == 12
    assert list(document["methods"]) == ["libragrad", "attention", "random", "center", "edges"]
    assert document["methods"]["libragrad"]["deletion"]["mean"] < document["methods"]["random"]["deletion"]["mean"]
    assert document["methods"]["libragrad"]["mosaic"] is None  # three classes make no mosaic of four
    assert document["data"] == "the 24 test images of colors"
    assert json.loads((tmp_path / "scores" / "faithfulness.json").read_text()) == document
    Image.open(tmp_path / "scores" / "faithfulness.png").verify()
    assert main([*map(str, arguments)]) == 0
    shown = capsys.readouterr().out
    assert "12 of the 24 test images of colors" in shown
    assert re.search(r"libragrad +0\.\d{3}.*\n +±0\.\d{3}", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "libragrd"], "no method 'libragrd'"),
        (["--max-images", "0"], "--max-images: 0 is too small"),
        (["--steps", "-1"], "--steps: -1 is too small"),
    ],
)
def test_faithfulness_refuses_wrong_use(run: vitrail.Run, colors: Path, arguments, message, capsys):
    code, document, _ = ask(capsys, "faithfulness", run.folder, colors, *arguments)
    assert code == 2
    assert message in document["error"]


def parser_of(verb: str) -> Parser:
    parser = make_parser(verb, importlib.import_module(f"vitrail.cli.{verb}"))
    parser.complete_help()
    return parser


OPTIONS_OF_OTHERS = {
    "--model-repository",
    "--logdir",
    "--data-binary",
    "--version",
    "--no-",
}  # of other programs; parts


def test_every_option_that_a_text_names_exists():
    options = {name for verb in VERBS for action in parser_of(verb)._actions for name in action.option_strings}
    source = Path(vitrail.__file__).parent
    named = {
        (option, str(file.relative_to(source)))
        for file in source.rglob("*.py")
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert {(option, file) for option, file in named if option not in options | OPTIONS_OF_OTHERS} == set()


def test_every_option_names_its_default():
    """Or that it is required. Metavars are words, not single letters."""
    for verb in VERBS:
        for action in parser_of(verb)._actions:
            if not action.option_strings or "--help" in action.option_strings or "--help-all" in action.option_strings:
                continue
            option = f"{verb} {action.option_strings[0]}"
            assert action.help and ("default" in action.help or "(required)" in action.help), option
            assert action.metavar is None or len(str(action.metavar)) > 1, option


def test_an_option_takes_the_same_in_every_verb():
    metavars: dict[str, set[str]] = {}
    for verb in VERBS:
        for action in parser_of(verb)._actions:
            for option in action.option_strings:
                metavars.setdefault(option, set()).add(str(action.metavar or action.choices).removesuffix("|none"))
    several = {option: values for option, values in metavars.items() if len(values) > 1}
    assert set(several) <= {"--out", "--format", "--precision", "--metric", "--unlike", "--against"}, (
        several
    )  # each verb has its own


def test_help_is_short_and_help_all_is_complete(capsys):
    for arguments in (["train", "--help"], ["help", "train"]):
        assert main(arguments) == 0
        short = capsys.readouterr().out
        assert "--epochs" in short and "--muon-lr" not in short and "more options: vitrail train --help-all" in short
    assert main(["train", "--help-all"]) == 0
    full = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in full for name in RECIPE_FIELDS)
    assert "default: 0.001 in recipe small" in " ".join(full.split())


@pytest.mark.parametrize("arguments", [["--version"], ["trian"], ["help"], []])
def test_simple_answers_import_nothing_heavy(arguments):
    code = (
        "import sys; from vitrail.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'numpy', 'torchvision', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_wrong_option_imports_nothing_heavy():
    code = (
        "import sys; from vitrail.cli.main import VERBS, main\n"
        "for verb in VERBS:\n"
        "    assert main([verb, '--nonsense']) == 2\n"
        "    assert 'torch' not in sys.modules and 'sklearn' not in sys.modules, verb"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_default_shard_size_is_the_writers():
    assert shard.DEFAULT_SHARD_MIB == writer.DEFAULT_SHARD_MIB
    assert (probe.DEFAULT_K, probe.DEFAULT_TEMPERATURE) == (knn.DEFAULT_K, knn.DEFAULT_TEMPERATURE)


def test_a_mistyped_run_is_not_taken_for_a_hub_id(run: vitrail.Run, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.folder, tmp_path / "mine" / "colors")
    monkeypatch.chdir(tmp_path)
    for name, hint in (("runs/nope", "vitrail train makes a run"), ("mine/color", "did you mean mine/colors?")):
        assert main(["predict", name, "x.jpg"]) == 2
        assert capsys.readouterr().err == f"error: there is no folder {name}\nhint: {hint}\n"


def test_export_checks_its_file_before_it_announces_work(run: vitrail.Run, tmp_path: Path, capsys):
    assert main(["export", str(run.folder), "--format", "torch", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "x").exists()
