"""How fast a ViT is on this machine, beside other libraries' ViTs of the same size, in one run."""

from vitrail.benchmarking.contenders import Contender, Task, inference_contenders, training_contenders
from vitrail.benchmarking.peers import installed
from vitrail.benchmarking.table import Result, Row, markdown, race

__all__ = [
    "Contender",
    "Result",
    "Row",
    "Task",
    "inference_contenders",
    "installed",
    "markdown",
    "race",
    "training_contenders",
]
