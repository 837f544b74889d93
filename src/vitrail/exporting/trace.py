"""A classifier as a graph of torch's operators, from which every other form is made."""

import torch

from vitrail.classifier import Classifier
from vitrail.exporting.map_program import example_inputs, trace_map_program
from vitrail.exporting.program import Program, ProgramOptions


def trace_program(classifier: Classifier, extras: ProgramOptions) -> torch.export.ExportedProgram:
    """The program with what is asked for, for a batch of any size."""
    program = Program(classifier, attention=extras.attention)
    module = trace_map_program(program) if extras.map else program
    given = example_inputs(program) if extras.map else (program.example_pixels,)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(module, given, dynamic_shapes=tuple({0: batch} for _ in given))
