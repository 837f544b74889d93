"""A classifier as a graph of torch's operators, from which every other form is made."""

import torch

from vitrail.classifier import Classifier
from vitrail.exporting.program import Extras, Program
from vitrail.exporting.map_program import example, map_program


def traced(classifier: Classifier, extras: Extras) -> torch.export.ExportedProgram:
    """The program with what is asked for, for a batch of any size."""
    program = Program(classifier, attention=extras.attention)
    module = map_program(program) if extras.map else program
    given = example(program) if extras.map else (program.example,)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(module, given, dynamic_shapes=tuple({0: batch} for _ in given))
