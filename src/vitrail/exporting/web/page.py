"""Writes a classifier as one HTML file that needs nothing else."""

import gzip
from base64 import b64encode
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.explanation.methods import DEFAULT_METHOD, METHODS
from vitrail.exporting.onnx_file import import_onnx
from vitrail.exporting.web.bundle import bundle_modules, read_site_file
from vitrail.exporting.web.examples import choose_examples, precompute_examples
from vitrail.exporting.web.graphs import Graphs, pack_graphs, trace_graphs
from vitrail.exporting.web.verify import verify_graphs
from vitrail.files import write_atomically
from vitrail.tasks import DEFAULT_THRESHOLD, MULTI_LABEL, TASKS, refuse_task
from vitrail.version import __version__
from vitrail.weights.origin import read_origin

MAX_PAGE_MB = 40.0  # default limit
RUNTIME_FILES = {"runtime": "ort.wasm.bundle.min.mjs.gz", "wasm": "ort-wasm-simd-threaded.wasm.gz"}
GZIP_RATIO = 0.93  # of trained weights
OTHER_MB = 0.4  # of a page beside its weights and runtime


@dataclass(frozen=True)
class WebPage:
    """A page and the verification of its graphs."""

    html: bytes = field(repr=False)
    verification: dict[str, Any]
    examples: int
    half: bool

    def to_json(self) -> dict[str, Any]:
        size = len(self.html)
        return {"format": "web", "bytes": size, "half": self.half, "examples": self.examples, **self.verification}


def render_page(
    classifier: Classifier, examples: Sequence[str | Path] | None = None, *, model: str = "", **options: Any
) -> bytes:
    """Returns the page as bytes, for a file or an HTTP response; for the options see `build_page`."""
    return build_page(classifier, examples, model=model, **options).html


def export_web(
    classifier: Classifier, out: str | Path, examples: Sequence[str | Path] | None = None, **options: Any
) -> dict[str, Any]:
    """Writes the page atomically and returns its verification; for the options see `build_page`.

    Raises `UsageError` if the file exists.
    """
    path = Path(out)
    if path.exists():
        raise UsageError(f"{path} already exists", "choose another --out")
    page = build_page(classifier, examples, **options)
    write_atomically(path, lambda temporary: temporary.write_bytes(page.html))
    return {"file": str(path), **page.to_json()}


def build_page(
    classifier: Classifier,
    examples: Sequence[str | Path] | None = None,
    *,
    model: str = "",
    title: str | None = None,
    data: str | Path | None = None,
    half: bool = False,
    limit: float = MAX_PAGE_MB,
) -> WebPage:
    """Builds and verifies the page of a classifier. Without `examples`, `choose_examples` finds some.

    `model` is the argument that loads the classifier on the command line, `title` the page's heading, `data` the
    training data, `limit` the size in megabytes; `half` stores the weights in float16. Raises `UsageError` if the
    classifier has no classes, onnx is not installed, or the page would be too large; `VitrailError` if the graphs do
    not agree with the classifier.
    """
    classifier.require_classes()
    refuse_task(classifier.task, "web")
    classifier.preprocess.refuse_bands("the web page reads 8-bit gray and color images", "export it as onnx")
    import_onnx()
    check_page_size(classifier, half, limit)
    vit = deepcopy(classifier.vit).to("cpu", torch.float32).eval().requires_grad_(False)
    classifier = replace(classifier, vit=vit)
    example_images = choose_examples(classifier, examples, data)
    graphs = pack_graphs(trace_graphs(classifier), half)
    verification = verify_graphs(classifier, graphs, [example.pixels for example in example_images])
    info = {
        **describe_classifier(classifier, model, title),
        "half": half,
        "verification": verification,
        "examples": precompute_examples(classifier, example_images),
    }
    return WebPage(render_html(info, graphs).encode(), verification, len(example_images), half)


def check_page_size(classifier: Classifier, half: bool, limit: float) -> None:
    """Raises `UsageError` if the page would be larger than the limit, from an estimate that needs no export."""
    parameters = sum(parameter.numel() for parameter in classifier.vit.parameters())
    weight_bytes = parameters * (2 if half else 4) * GZIP_RATIO
    runtime_bytes = sum(len(read_vendor_file(name)) for name in RUNTIME_FILES.values())
    size = (weight_bytes + runtime_bytes) * 4 / 3 / 1e6 + OTHER_MB  # base64 needs 4 characters for 3 bytes
    if size > limit:
        advice = "" if half else f"--precision fp16 reduces it to about {(size - weight_bytes * 2 / 3 / 1e6):.0f}; "
        raise UsageError(
            f"the page would have about {size:.0f} MB, more than {limit:g}",
            f"{advice}--max-size-mb {size + 1:.0f} allows it",
        )


def describe_classifier(classifier: Classifier, model: str, title: str | None) -> dict[str, Any]:
    """Returns what the page shows about the classifier and needs to know of it."""
    config, origin = classifier.vit.config, read_origin(classifier.origin)
    scores = origin.get("metrics", {}).get("test") or {}
    score = "map" if classifier.task == MULTI_LABEL else "accuracy"
    name = title or Path(model).name or origin.get("card") or "classifier"
    return {
        "name": str(name).removesuffix(".safetensors"),
        "model": model_argument(model),
        "classes": list(classifier.classes),
        "grid": list(config.grid),
        "patch": config.patch,
        "depth": config.depth,
        "heads": config.heads,
        "prefix": config.prefix_tokens,
        "pool": config.pool,
        "channels": config.channels,
        "parameters": sum(parameter.numel() for parameter in classifier.vit.parameters()),
        "preprocess": classifier.preprocess.to_json(),
        "paddingColor": classifier.preprocess.mean_color,
        "temperature": classifier.temperature,
        "answer": TASKS[classifier.task].answer,
        "thresholds": list(classifier.thresholds or [DEFAULT_THRESHOLD] * len(classifier.classes)),
        "score": scores.get(score),
        "score_interval": scores.get(f"{score}_interval"),
        "images": scores.get("images"),
        "data": origin.get("data", {}).get("name"),
        "method": DEFAULT_METHOD,
        "method_description": METHODS[DEFAULT_METHOD].description,
        "vitrail": __version__,
    }


def model_argument(model: str) -> str:
    """Returns the MODEL argument to show; of an absolute path only the file name, which publishes no home folder."""
    return (Path(model).name if Path(model).is_absolute() else model) or "MODEL"


def render_html(info: dict[str, Any], graphs: Graphs) -> str:
    """Fills the template; the large payloads come last, so that a browser shows the page before it has them."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    payloads = {name: b64encode(read_vendor_file(file)).decode() for name, file in RUNTIME_FILES.items()}
    payloads |= {f"graph-{name}": gzip_base64(graph) for name, graph in graphs.graphs.items()}
    payloads["weights"] = gzip_base64(graphs.weights)
    environment = Environment(
        loader=FunctionLoader(read_site_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template("index.html").render(
        info=info,
        style=Markup(read_site_file("style.css")),
        script=Markup(bundle_modules("main.js")),
        worker=Markup(bundle_modules("worker.js")),
        payloads=payloads,
        license=read_vendor_file("LICENSE").decode(),
    )
    return page


def gzip_base64(content: bytes) -> str:
    return b64encode(gzip.compress(content, 9, mtime=0)).decode()


def read_vendor_file(name: str) -> bytes:
    """Returns a file of ONNX Runtime Web."""
    return files("vitrail.exporting.web").joinpath("vendor", name).read_bytes()
