"""What is public: the list of docs/api.md, the signatures, and deprecations that warn once."""

import ast
import inspect
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Literal, Unpack, get_type_hints

import numpy as np
import pytest

import vitrail
from vitrail.data.augment import Augment
from vitrail.deprecation import deprecated
from vitrail.training.recipe import RECIPE_FIELDS
from vitrail.training.recipe_changes import RecipeChanges, TrainChanges
from vitrail.training.recipes import find_recipe
from vitrail.weights.sizes import SIZES

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
public_api, recipe_changes = import_module("public_api"), import_module("recipe_changes")

DOCUMENT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DOCUMENTED = {"vitrail.model.position.PositionEmbedding"}  # in docs/plugins.md
ROWS = re.findall(r"^\| `(vitrail[\w.]*)` \| `(vitrail[\w.]*)` \| (.+) \|$", DOCUMENT, re.MULTILINE)


def test_the_document_lists_everything_public_with_its_module():
    assert sorted(name for name, _, _ in ROWS) == sorted(name for name, _ in public_api.public_names())
    for name, module, line in ROWS:
        package, _, own = name.rpartition(".")
        assert getattr(import_module(module), own) is getattr(import_module(package), own), name
        assert line


def test_examples_import_only_what_is_public():
    public = {name for name, _ in public_api.public_names()} | DOCUMENTED
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vitrail"):
                for each in node.names:
                    assert f"{node.module}.{each.name}" in public, path.name


def test_the_signatures_are_those_of_the_file():
    assert public_api.describe_all() == public_api.FILE.read_text(encoding="utf-8"), (
        "a public signature has changed: if that is meant, run python tools/public_api.py --write"
    )


def test_nothing_public_takes_any_option():
    """A bare **options or **kwargs has no names that an editor could complete."""
    for line in public_api.describe_all().splitlines():
        assert not re.search(r"\*\*\w+: Any", line), line


def test_the_types_of_recipe_changes_are_those_of_the_dataclasses():
    owners = {"recipe": vitrail.Recipe, "augment": Augment, "model": vitrail.ViTConfig}
    expected = {name: get_type_hints(owners[part])[name] for name, part in RECIPE_FIELDS.items()}
    types = get_type_hints(RecipeChanges)
    assert types.pop("size") == Literal[tuple(SIZES)]
    assert types == expected
    assert get_type_hints(TrainChanges).keys() == types.keys() - {"architecture", "loss"} | {"size"}
    assert recipe_changes.write_module() == recipe_changes.FILE.read_text(encoding="utf-8"), (
        "a field of a recipe or its help text has changed: run python tools/recipe_changes.py --write"
    )


def test_keywords_that_change_a_recipe_are_distinct_from_the_functions_own():
    for function, changes in (
        (vitrail.train, TrainChanges),
        (vitrail.sweep, RecipeChanges),
        (vitrail.Recipe.with_changes, RecipeChanges),
        (find_recipe, RecipeChanges),
    ):
        own = inspect.signature(function).parameters
        assert own["changes"].annotation == Unpack[changes]
        assert not own.keys() & get_type_hints(changes).keys()


def test_a_keyword_that_no_recipe_has_is_refused_with_the_nearest_one(tmp_path: Path):
    for call in (
        lambda: vitrail.train("digits", out=tmp_path / "run", epoch=3),
        lambda: vitrail.sweep("digits", out=tmp_path / "sweep", vary={"lr": [1e-3]}, epoch=3),
        lambda: vitrail.Recipe().with_changes(epoch=3),
        lambda: find_recipe("small", epoch=3),
    ):
        with pytest.raises(vitrail.UsageError, match="a recipe has no field 'epoch'") as refused:
            call()
        assert "epochs" in refused.value.hint
    assert not list(tmp_path.iterdir())


def test_a_deprecated_function_warns_once_at_its_caller():
    @deprecated(since="0.2", removed_in="0.4", instead="vitrail.new")
    def old(x: int, *, y: int = 0) -> int:
        """Adds."""
        return x + y

    with pytest.warns(
        FutureWarning, match="old is deprecated since vitrail 0.2 and goes in 0.4; use vitrail.new"
    ) as seen:
        assert old(1, y=2) == 3
    assert seen[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        assert old(2) == 2
    assert old.__doc__ == "Adds."


def test_predict_takes_a_model_by_its_name_or_loaded():
    pixels = np.zeros((32, 32, 3), np.uint8)
    by_name = vitrail.predict("cifar10-small", pixels, top=2)
    assert isinstance(by_name, vitrail.ImagePrediction) and len(by_name) == 2
    assert by_name == vitrail.predict(vitrail.load("cifar10-small"), [pixels], top=2)[0]


def test_export_writes_and_compares(tmp_path: Path):
    clf = vitrail.load("cifar10-small")
    written = vitrail.export(clf, tmp_path / "x.pt2", format="torch")
    assert written.path.is_file() and written.verification.agreement == 1
    folder = vitrail.export("cifar10-small", tmp_path / "folder", format="timm")
    assert (folder.folder / "model.safetensors").is_file()
    with pytest.raises(vitrail.UsageError, match="the format hf takes no options"):
        vitrail.export(clf, tmp_path / "y", format="hf", int8=True)
    with pytest.raises(vitrail.UsageError, match="there is no format 'onxx'"):
        vitrail.export(clf, tmp_path / "y", format="onxx")
