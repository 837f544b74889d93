"""The code that type checkers read runs, too."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail
from vitrail.parts import PARTS
from vitrail.registry import RULES

sys.path.append(str(Path(__file__).parent / "typing"))

import user_code


def test_the_code_of_a_user_runs(run: vitrail.Run, colors: Path, tmp_path: Path):
    clf, file = run.classifier, next(colors.glob("test/red/*.png"))
    user_code.predict(clf, file)
    user_code.predict_files(clf, run.folder, colors / "test", tmp_path / "predictions")
    user_code.explain_and_export(clf, file, tmp_path)
    assert user_code.handle_errors(clf) == "there is no such file"
    user_code.make_values()
    assert user_code.use_scikit_learn().get_params()["epochs"] == 1
    with pytest.raises(vitrail.UsageError, match="a recipe has no field 'epoch'"):
        user_code.mistype(vitrail.Recipe())
    assert user_code.train_and_evaluate(colors, tmp_path / "run").folder == tmp_path / "run"


@pytest.fixture
def own_parts() -> Iterator[None]:
    """Registers the parts of the user's code, and removes them at the end."""
    before = set(PARTS)
    user_code.register_parts()
    yield
    for kind, name in set(PARTS) - before:
        del RULES[kind].table[name], PARTS[kind, name]


@pytest.mark.usefixtures("own_parts")
def test_parts_callbacks_and_data_of_a_user_train(tmp_path: Path):
    assert len(user_code.train_with_own_parts(tmp_path / "run")) == 4  # a loss per step, until the callback stops it
    assert len(user_code.train_another_model(tmp_path / "other")) == 4
