"""Other libraries' `config.json` -> our config, classes and preprocessing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import VitrailError
from vitrail.weights.hf_config import (
    PREPROCESSOR_FILE,
    parse_hf_config,
    parse_preprocessor,
    parse_task,
    read_preprocessor_file,
)
from vitrail.weights.parsed_config import Document, ParsedConfig
from vitrail.weights.timm_config import parse_timm_config


def parse_config(document: Document, folder: Path) -> ParsedConfig:
    """Parses the `config.json` in a folder, timm's or transformers'.

    Raises `VitrailError` for a model that vitrail does not have, with the field that differs.
    """
    with describe_errors(folder / "config.json"):
        if is_timm_config(document):
            return parse_timm_config(document)
        layout, config, classes = parse_hf_config(document)
    preprocessor = read_preprocessor_file(folder)
    with describe_errors(folder / ("config.json" if preprocessor is None else PREPROCESSOR_FILE)):
        preprocess = parse_preprocessor(preprocessor, document, config)
        return ParsedConfig(layout, config, classes, preprocess, task=parse_task(document))


@contextmanager
def describe_errors(path: Path) -> Iterator[None]:
    """Turns the errors of a document that lacks a field, or has another type there, into a `VitrailError`."""
    try:
        yield
    except KeyError as error:
        raise VitrailError(f"{path} lacks {error}", "download it again") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise VitrailError(f"{path} has an impossible value ({error})") from None


def is_timm_config(document: Document) -> bool:
    """Returns whether the document is timm's, which includes the preprocessing."""
    return "architecture" in document
