"""An argument parser with short help (common options), full help (--help-all), and errors with a hint."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from vitrail.errors import UsageError, did_you_mean


class _HelpAll(argparse.Action):
    """--help-all: prints the help with every option."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.shows_advanced = True
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse, except that an error raises `UsageError` instead of printing the usage.

    `complete_help` is called before help is printed. It fills in texts that need slow imports.

    `checks` are called with the arguments once plugins are imported, before the verb imports anything heavy.

    Options of groups that `add_advanced_group` returns, and options passed to `hide`, appear under --help-all only.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.advanced: list[argparse.Action] = []
        self.advanced_groups: list[argparse._ArgumentGroup] = []
        self.shows_advanced = False
        self.complete_help: Callable[[], None] = lambda: None
        self.checks: list[Callable[[argparse.Namespace], None]] = []

    def add_advanced_group(self, title: str) -> argparse._ArgumentGroup:
        group = self.add_argument_group(title)
        self.advanced_groups.append(group)
        return group

    def hide(self, action: argparse.Action) -> None:
        """Shows an option under --help-all only."""
        self.advanced.append(action)

    def add_help_all(self) -> None:
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show the help with all options and exit")

    def advanced_actions(self) -> list[argparse.Action]:
        return [*self.advanced, *(action for group in self.advanced_groups for action in group._group_actions)]

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help lists the arguments")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the arguments; raises `UsageError` for an unknown option, with the nearest known ones as a hint."""
        parsed, unknown = self.parse_known_args(argv)
        if unknown:
            option = unknown[0].split("=")[0]
            hint = did_you_mean(option, self._option_string_actions) if option.startswith("-") else None
            raise UsageError(f"{self.prog} does not take {unknown[0]!r}", hint)
        return parsed

    def format_help(self) -> str:
        self.complete_help()
        if self.shows_advanced or not (hidden := self.advanced_actions()):
            return super().format_help()
        with _suppress(hidden):
            text = super().format_help()
        return f"{text}\n{len(hidden)} more options: {self.prog} --help-all\n"

    def format_usage(self) -> str:
        with _suppress([] if self.shows_advanced else self.advanced_actions()):
            return super().format_usage()


@contextmanager
def _suppress(actions: Sequence[argparse.Action]) -> Iterator[None]:
    """Within the block, argparse leaves these options out of the help."""
    texts = [action.help for action in actions]
    for action in actions:
        action.help = argparse.SUPPRESS
    try:
        yield
    finally:
        for action, text in zip(actions, texts, strict=True):
            action.help = text
