"""A classifier in an OpenVINO model, run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.errors import UsageError
from vitrail.exporting.openvino_file import read_openvino
from vitrail.exporting.openvino_runtime import OpenvinoSession, check_device, get_core, import_openvino
from vitrail.exporting.program_classifier import ProgramClassifier


@dataclass
class OpenvinoClassifier(ProgramClassifier):
    """A classifier whose logits OpenVINO computes."""

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, device: str = "cpu") -> OpenvinoClassifier:
        """Loads the model of an .xml file that vitrail wrote; `threads` defaults to torch's number of threads.

        A float model runs in float32. The float operations of an int8 model run in bf16 if the processor has it.
        Raises `VitrailError` for a damaged or foreign file, `UsageError` if a file or OpenVINO is missing.
        """
        model = read_openvino(Path(path))
        import_openvino()
        check_device(device)
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; it must be at least 1")

        def read_graph() -> Any:
            return get_core().read_model(model.graph, model.weights)

        precision = None if model.exported.get("int8") else "f32"
        session = OpenvinoSession(read_graph, model.inputs, model.outputs, threads, precision)
        return cls.from_artifact(session, model.artifact, model.exported)

    @property
    def outputs(self) -> tuple[str, ...]:
        outputs: tuple[str, ...] = self.session.outputs
        return outputs

    @property
    def inputs(self) -> tuple[str, ...]:
        inputs: tuple[str, ...] = self.session.inputs
        return inputs

    def run_session(self, feed: dict[str, Any], outputs: Sequence[str]) -> list[Tensor]:
        results: list[Tensor] = self.session.run(feed, outputs)
        return results
