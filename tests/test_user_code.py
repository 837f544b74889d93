"""The code that type checkers read runs, too."""

import sys
from pathlib import Path

import vitrail

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
    assert user_code.train_and_evaluate(colors, tmp_path / "run").folder == tmp_path / "run"
