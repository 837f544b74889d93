"""Speed and memory of a ViT on this machine, compared with other libraries' ViTs of the same size in one run."""

from vitrail.benchmarking.candidates import Candidate, Workload, inference_candidates, training_candidates
from vitrail.benchmarking.peers import find_installed_peers
from vitrail.benchmarking.results import BenchmarkResult, BenchmarkRow, format_markdown, run_benchmark

__all__ = [
    "BenchmarkResult",
    "BenchmarkRow",
    "Candidate",
    "Workload",
    "find_installed_peers",
    "format_markdown",
    "inference_candidates",
    "run_benchmark",
    "training_candidates",
]
