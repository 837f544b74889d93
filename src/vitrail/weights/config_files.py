"""Other libraries' `config.json` -> our config, classes and preprocessing."""

from pathlib import Path

from vitrail.errors import VitrailError
from vitrail.weights.hf_config import parse_hf_config, read_preprocessor_file
from vitrail.weights.parsed_config import Document, ParsedConfig
from vitrail.weights.timm_config import parse_timm_config


def parse_config(document: Document, folder: Path) -> ParsedConfig:
    """Parses the `config.json` in a folder, timm's or transformers'.

    Raises `VitrailError` for a model that vitrail does not have, with the field that differs.
    """
    try:
        if is_timm_config(document):
            return parse_timm_config(document)
        return parse_hf_config(document, read_preprocessor_file(folder))
    except KeyError as error:
        raise VitrailError(f"{folder / 'config.json'} lacks {error}", "download it again") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise VitrailError(f"{folder / 'config.json'} has an impossible value ({error})") from None


def is_timm_config(document: Document) -> bool:
    """Returns whether the document is timm's, which includes the preprocessing."""
    return "architecture" in document
