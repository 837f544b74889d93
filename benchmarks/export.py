"""What an export costs and brings, beside ONNX Runtime's own dynamic quantisation of the same file.

    python benchmarks/export.py MODEL [DATA] [--rounds N] [--threads N]

A table in Markdown: how far each file's answers are from the classifier's, what it loses in accuracy (95 % interval of
paired answers), its size, and milliseconds of processor time an image, medians of rounds in which the files take turns.
DATA are labelled images, the ones that `vitrail evaluate` would score; without it, some of the built-in digits.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from onnxruntime.quantization import quantize_dynamic

import vitrail
from vitrail.exporting.int8 import quantize
from vitrail.exporting.onnx_classifier import OnnxClassifier, create_session
from vitrail.exporting.onnx_format import add_metadata, build_onnx_model
from vitrail.exporting.program import ProgramOptions
from vitrail.exporting.verify import Verification, compare_program, load_probes

BATCHES = (1, 32)


def main() -> None:
    """Builds the files, asks them all, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    classifier = vitrail.load(arguments.model)
    whole = build_onnx_model(classifier, ProgramOptions())
    add_metadata(whole, classifier, {"images": 0, "max_difference": float("nan")})
    files = {"float32": whole.SerializeToString(), "int8, vitrail's": quantize(whole).SerializeToString()}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "float.onnx").write_bytes(files["float32"])
        quantize_dynamic(Path(folder, "float.onnx"), Path(folder, "default.onnx"))
        files["int8, `quantize_dynamic`'s default"] = Path(folder, "default.onnx").read_bytes()
    check = load_probes(classifier, arguments.data)
    pixels, _ = next(check.batches(classifier))
    runners = {
        name: OnnxClassifier(
            create_session(data, Path(name), arguments.threads, "cpu"), classifier.classes, classifier.preprocess,
            classifier.temperature,
        )
        for name, data in files.items()
    }  # fmt: skip
    agreed = {name: compare_program(classifier, runner.logits, check) for name, runner in runners.items()}
    times = {batch: in_turns({"torch": classifier, **runners}, pixels[:batch], arguments.rounds) for batch in BATCHES}
    print(f"{arguments.model}, {check.description}, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    print(
        "| file | MB | largest difference | same class | one image alone or among others | accuracy | points lost |",
        end="",
    )
    print("".join(f" ms an image, batch {batch} |" for batch in BATCHES))
    print("| --- |" + " --: |" * (6 + len(BATCHES)))
    torch_times = " | ".join(f"{times[batch]['torch']:.2f}" for batch in BATCHES)
    print(f"| torch, eager | | | | | | | {torch_times} |")
    for name, data in files.items():
        row = [name, f"{len(data) / 1e6:.2f}", *said(agreed[name])]
        row += [f"{times[batch][name]:.2f}" for batch in BATCHES]
        print("| " + " | ".join(row) + " |")


def said(agreed: Verification) -> list[str]:
    """The columns of agreement."""
    row = [f"{agreed.max_difference:.1e}", f"{agreed.agreement:.2%}", f"{agreed.batch_difference:.1e}"]
    if agreed.accuracy_drop is None or agreed.accuracy_drop_interval is None:
        return [*row, "", ""]
    low, high = (100 * each for each in agreed.accuracy_drop_interval)
    return [*row, f"{agreed.exported_accuracy:.4f}", f"{100 * agreed.accuracy_drop:.2f} ({low:.2f} to {high:.2f})"]


def in_turns(runners: dict, pixels: torch.Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time an image, the median of rounds in which all take turns."""
    took: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        for name, runner in runners.items():
            start = time.process_time()
            runner.logits(pixels)
            if number:  # the first is warm-up
                took[name].append(1e3 * (time.process_time() - start) / len(pixels))
    return {name: median(each) for name, each in took.items()}


if __name__ == "__main__":
    main()
