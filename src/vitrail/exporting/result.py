"""What an export has written, and the place it may write to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError
from vitrail.exporting.verify import MAX_ACCURACY_DROP, Verification


@dataclass(frozen=True)
class ExportResult:
    """A program that was written, how far it agrees, and what `int8` brought, if that was asked for."""

    path: Path
    format: str
    outputs: tuple[str, ...]
    verification: Verification
    bytes: int
    int8: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the command line says it."""
        document = {"file": str(self.path), "format": self.format, "bytes": self.bytes, "outputs": list(self.outputs)}
        return {**document, **self.verification.to_json(), **({"int8": self.int8} if self.int8 else {})}

    def summary(self) -> list[str]:
        """The same in sentences."""
        agreed = self.verification
        shown = [
            f"written: {self.path} ({self.bytes / 1e6:.2f} MB), which gives {', '.join(self.outputs)}",
            f"compared on {agreed.description}: largest difference of a logit {agreed.max_difference:.1e}, the same class for "
            f"{agreed.agreement:.2%}, an image alone or among others {agreed.batch_difference:.1e}",
        ]
        if agreed.other_differences:
            said = ", ".join(f"{name} {apart:.1e}" for name, apart in agreed.other_differences.items())
            shown.append(f"largest differences beside the logits: {said}")
        if (
            agreed.accuracy_drop is not None
            and agreed.accuracy_drop_interval
            and agreed.accuracy
            and agreed.exported_accuracy
        ):
            low, high = (100 * each for each in agreed.accuracy_drop_interval)
            shown.append(
                f"accuracy {agreed.accuracy:.4f} before and {agreed.exported_accuracy:.4f} after: "
                f"{100 * agreed.accuracy_drop:+.2f} points lost (95 % interval {low:+.2f} to {high:+.2f})"
            )
            if high > 100 * MAX_ACCURACY_DROP:
                shown.append(
                    f"these images are too few to rule out that more than {100 * MAX_ACCURACY_DROP} points are lost"
                )
        if self.int8:
            smaller = self.int8["float_bytes"] / self.int8["bytes"]
            faster = self.int8["float_milliseconds"] / self.int8["milliseconds"]
            shown.append(
                f"int8 against float in ONNX Runtime here: {smaller:.1f} times smaller, {faster:.2f} times as fast "
                f"({self.int8['milliseconds']:.2f} ms an image, in batches of 8)"
            )
            if agreed.accuracy_drop is None:
                shown.append("no accuracy is claimed: give labelled images with --check DATA")
        return shown


def new_path(out: str | Path, suffix: str) -> Path:
    """The file to write; raises `UsageError` where something is there or it is named as what it is not."""
    path = Path(out)
    if path.exists():
        raise UsageError(f"{path} exists already", "choose another --out")
    if path.suffix.lower() != suffix:
        raise UsageError(f"{path} is not named as what it will be", f"end its name in {suffix}")
    return path
