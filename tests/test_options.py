"""Fields are what their types and bounds say, wherever a value comes from."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from vitrail.errors import UsageError, first_line
from vitrail.options import check_fields, option
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import find_recipe


@dataclass(frozen=True, kw_only=True)
class Some:
    whole: int = option(1, "a count", ge=1, le=9)
    part: float = option(0.5, "a part", gt=0, lt=1)
    maybe: int | None = None
    sure: bool = True
    kind: Literal["one", "two"] = "one"
    sizes: tuple[float, ...] = (1.0,)
    pair: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        check_fields(self)


def test_what_fits_is_taken():
    Some(whole=9, part=0.999, maybe=3, sure=False, kind="two", sizes=(1, 2.5), pair=(3, 4))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("whole", 0, "whole is 0; it must be a whole number, at least 1 and at most 9"),
        ("whole", 10, "at most 9"),
        ("whole", 1.0, "whole number"),
        ("whole", True, "whole number"),
        ("whole", 10**30, "whole number"),
        ("part", 0, "above 0"),
        ("part", 1, "below 1"),
        ("part", float("nan"), "a number"),
        ("part", "0.5", "a number"),
        ("maybe", "none", "a whole number or none"),
        ("sure", "false", "true or false"),
        ("sure", 1, "true or false"),
        ("kind", "tow", "kind 'tow' is not known.*two"),
        ("kind", 3, "one, two"),
        ("sizes", (1.0, "x"), "sizes"),
        ("sizes", [1.0], "sizes"),
        ("pair", (1, 2, 3), "must be two whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(field: str, value: Any, message: str):
    with pytest.raises(UsageError, match=message):
        Some(**{field: value})


@pytest.mark.parametrize(
    "change",
    [
        {"image_cache_gib": float("nan")}, {"image_cache_gib": float("inf")}, {"workers": -1}, {"weight_decay": -1},
        {"momentum": -1}, {"mixup": float("nan")}, {"seed": 10**24}, {"patch_init_std": -1}, {"max_grad_norm": -1},
        {"patch": 0}, {"dropout": "x"}, {"mlp": 3}, {"patch": "x"}, {"image_size": 3.5}, {"epochs": 1.5},
        {"batch_size": 2.5}, {"max_grad_norm": "a"}, {"lr": True},
        {"qkv_bias": "false"}, {"position": {"kind": "rotary", "base": "x"}}, {"augment": {"flip": 0.3}},
    ],
)  # fmt: skip
def test_a_recipe_refuses_what_makes_no_sense_before_anything_runs(change: dict[str, Any]):
    (name,) = change
    with pytest.raises(UsageError, match="base" if name == "position" else name):
        find_recipe(Recipe(), **change)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("\n  it broke\nat line 3"), "it broke"),
        (TimeoutError(), "TimeoutError"),  # what many a library raises says nothing
        (TimeoutError("\n \n"), "TimeoutError"),
        (ValueError("x" * 999), "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_there_even_where_it_says_nothing(error: Exception, message: str):
    assert first_line(error) == message
