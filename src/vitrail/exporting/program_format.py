"""The interface of a program format."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.export_documents import Int8Document
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import ProgramOptions, RunProgram


class ProgramFormat(ABC):
    """A classifier's program in one format: built in memory by the constructor, then run, written and read back."""

    suffix: ClassVar[str]  # of the file name; empty for a folder
    weights_suffix: ClassVar[str] = ""  # of a second file, beside the first one, that holds the weights

    def __init__(self, classifier: Classifier, options: ProgramOptions, probes: Probes):
        """`probes` are the images of the verification; a format that needs images to calibrate finds them there."""
        self.classifier = classifier
        self.options = options
        self.probes = probes

    @classmethod
    def check_path(cls, path: Path) -> None:
        """Raises `UsageError` if the path exists or has the wrong suffix."""
        if path.exists():
            raise UsageError(f"{path} already exists", "choose another --out")
        if path.suffix.lower() != cls.suffix:
            raise UsageError(f"{path} has the wrong suffix", f"the name must end in {cls.suffix}")
        if cls.weights_suffix and (weights := path.with_suffix(cls.weights_suffix)).exists():
            raise UsageError(f"{weights} already exists, which would hold the weights", "choose another --out")

    @classmethod
    def check_packages(cls, *, int8: bool) -> None:
        """Raises `UsageError` if a package that the format needs is not installed; torch alone needs none."""
        return

    @abstractmethod
    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        """Runs the program in memory and returns one of its outputs."""

    @abstractmethod
    def write(self, path: Path, name: str, exported: dict[str, Any]) -> None:
        """Writes the program to a temporary path.

        `name` is the file or folder name that it will have, `exported` its options and verification, for formats that
        have a place for them.
        """

    @abstractmethod
    def read_back(self, path: Path) -> RunProgram:
        """Reads a written program as its users do."""

    def model_file(self, path: Path) -> Path:
        """Returns the file that holds the weights."""
        return path.with_suffix(self.weights_suffix) if self.weights_suffix else path

    def measure_int8(self, pixels_BCHW: Tensor) -> Int8Document | None:
        """Returns the size and the speed of an int8 program, and those of the same program in float32."""
        return None
