"""Compares ONNX exports of a classifier with it, and with ONNX Runtime's own dynamic quantization of the same file.

    python benchmarks/export.py MODEL [DATA] [--rounds N] [--threads N]

Prints a Markdown table: the difference of each file's logits from the classifier's, the loss of accuracy (95% interval
of paired differences), the file size, and the CPU time per image (median over rounds in which the files take turns).
DATA are labeled images, of which the split that `vitrail evaluate` scores is used; without it, built-in digits.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch
from onnxruntime.quantization import quantize_dynamic

import vitrail
from vitrail.classifier import BaseClassifier
from vitrail.exporting.int8 import quantize
from vitrail.exporting.onnx_classifier import OnnxClassifier, create_session
from vitrail.exporting.onnx_format import add_metadata, build_onnx_model
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ProgramOptions
from vitrail.exporting.verify import Verification, compare_logits

BATCH_SIZES = (1, 32)


def main() -> None:
    """Builds the files, compares and times them, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    classifier = vitrail.load(arguments.model)
    files = build_files(classifier)
    probes = load_probes(classifier, arguments.data)
    pixels, _ = next(probes.batches(classifier))
    exported = {
        name: OnnxClassifier(
            create_session(data, Path(name), arguments.threads, "cpu"), classifier.classes, classifier.preprocess,
            classifier.temperature,
        )
        for name, data in files.items()
    }  # fmt: skip
    verified = {name: compare_logits(classifier, each.logits, probes) for name, each in exported.items()}
    times = {
        size: time_in_turns({"torch": classifier, **exported}, pixels[:size], arguments.rounds) for size in BATCH_SIZES
    }
    print(f"{arguments.model}, {probes.description}, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    columns = ["file", "MB", "largest difference", "same class", "difference alone and in a batch", "accuracy",
               "points lost", *(f"ms per image, batch size {size}" for size in BATCH_SIZES)]  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("| --- |" + " --: |" * (len(columns) - 1))
    torch_times = " | ".join(f"{times[size]['torch']:.2f}" for size in BATCH_SIZES)
    print(f"| torch, eager | | | | | | | {torch_times} |")
    for name, data in files.items():
        row = [name, f"{len(data) / 1e6:.2f}", *format_verification(verified[name])]
        row += [f"{times[size][name]:.2f}" for size in BATCH_SIZES]
        print("| " + " | ".join(row) + " |")


def build_files(classifier: vitrail.Classifier) -> dict[str, bytes]:
    """The ONNX files to compare, by name."""
    model = build_onnx_model(classifier, ProgramOptions())
    add_metadata(model, classifier, {"images": 0, "max_difference": 0.0, "compared_on": "no images"})
    float32 = model.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "float.onnx").write_bytes(float32)
        quantize_dynamic(Path(folder, "float.onnx"), Path(folder, "default.onnx"))
        default_int8 = Path(folder, "default.onnx").read_bytes()
    return {
        "float32": float32,
        "int8, vitrail's": quantize(model).SerializeToString(),
        "int8, `quantize_dynamic`'s default": default_int8,
    }


def format_verification(verification: Verification) -> list[str]:
    """The columns of differences and accuracy."""
    row = [
        f"{verification.max_difference:.1e}",
        f"{verification.agreement:.2%}",
        f"{verification.batch_difference:.1e}",
    ]
    if verification.accuracy_drop is None or verification.accuracy_drop_interval is None:
        return [*row, "", ""]
    low, high = (100 * bound for bound in verification.accuracy_drop_interval)
    loss = f"{100 * verification.accuracy_drop:.2f} ({low:.2f} to {high:.2f})"
    return [*row, f"{verification.exported_accuracy:.4f}", loss]


def time_in_turns(classifiers: Mapping[str, BaseClassifier], pixels: torch.Tensor, rounds: int) -> dict[str, float]:
    """The CPU time per image in milliseconds: the median over rounds in which all take turns."""
    milliseconds: dict[str, list[float]] = {name: [] for name in classifiers}
    for number in range(rounds + 1):
        for name, classifier in classifiers.items():
            start = time.process_time()
            classifier.logits(pixels)
            if number:  # the first round is a warm-up
                milliseconds[name].append(1e3 * (time.process_time() - start) / len(pixels))
    return {name: median(values) for name, values in milliseconds.items()}


if __name__ == "__main__":
    main()
