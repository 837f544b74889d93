"""The result of exporting a program."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vitrail.export_documents import ExportDocument, Int8Document
from vitrail.exporting.verify import MAX_ACCURACY_DROP, Verification


@dataclass(frozen=True)
class ExportResult:
    """A program that was written, its verification, and for int8 its size and speed compared with float32."""

    path: Path
    format: str
    outputs: tuple[str, ...]
    verification: Verification
    bytes: int
    int8: Int8Document | None = None

    def to_json(self) -> ExportDocument:
        document = {"file": str(self.path), "format": self.format, "bytes": self.bytes, "outputs": list(self.outputs)}
        int8 = {"int8": self.int8} if self.int8 else {}
        return cast(ExportDocument, {**document, **self.verification.to_json(), **int8})

    def summary(self) -> list[str]:
        """Returns the result in sentences."""
        verification = self.verification
        same_class = f"same class for {verification.agreement:.2%}, " if verification.has_classes else ""
        served = f"serve it: tritonserver --model-repository {self.path.absolute().parent}"
        sentences = [
            f"written: {self.path} ({self.bytes / 1e6:.2f} MB), with the outputs {', '.join(self.outputs)}",
            f"compared on {verification.description}: largest difference of an output "
            f"{verification.max_difference:.1e}, {same_class}an image alone and in a batch differ by "
            f"{verification.batch_difference:.1e}",
        ]
        if self.format == "triton":
            sentences.insert(1, served)
        if verification.other_differences:
            differences = ", ".join(f"{name} {value:.1e}" for name, value in verification.other_differences.items())
            sentences.append(f"largest differences of the other outputs: {differences}")
        sentences += describe_accuracy(verification)
        if self.int8:
            runtime = "OpenVINO" if self.format == "openvino" else "ONNX Runtime"
            smaller = self.int8["float_bytes"] / self.int8["bytes"]
            faster = self.int8["float_milliseconds"] / self.int8["milliseconds"]
            sentences.append(
                f"int8 compared with float32 in {runtime} on this machine: {smaller:.1f} times smaller, "
                f"{faster:.2f} times as fast ({self.int8['milliseconds']:.2f} ms per image, in batches of 8)"
            )
            if calibrated_on := self.int8.get("calibrated_on"):
                sentences.append(f"scales of the activations chosen on {calibrated_on}")
            if verification.accuracy_drop is None:
                sentences.append("the accuracy was not measured: give labeled images with --verify-data DATA")
        return sentences


def describe_accuracy(verification: Verification) -> list[str]:
    """Returns the accuracies and their difference in sentences; none if the images are not labeled."""
    interval = verification.accuracy_drop_interval
    if verification.accuracy_drop is None or interval is None:
        return []
    low, high = (100 * bound for bound in interval)
    sentences = [
        f"accuracy {verification.accuracy:.4f} before and {verification.exported_accuracy:.4f} after: "
        f"{100 * verification.accuracy_drop:+.2f} points lost (95% interval {low:+.2f} to {high:+.2f})"
    ]
    if high > 100 * MAX_ACCURACY_DROP:
        sentences.append(f"these images are too few to exclude a loss of more than {100 * MAX_ACCURACY_DROP} points")
    return sentences
