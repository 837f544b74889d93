"""A classifier and what belongs to it -> one HTML file that needs nothing else."""

import gzip
import re
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
from vitrail.exporting.web.examples import choose_examples, precompute_examples
from vitrail.exporting.web.graphs import Graphs, pack_graphs, trace_graphs
from vitrail.exporting.web.verify import verify_graphs
from vitrail.files import write_atomically
from vitrail.version import __version__

MAX_PAGE_MB = 40.0  # megabytes of a page, unless said
RUNTIME = {"runtime": "ort.wasm.bundle.min.mjs.gz", "wasm": "ort-wasm-simd-threaded.wasm.gz"}
PAGE_MODULES = (  # in this order
    *("words", "fit", "read", "colours", "model", "window", "curves", "hash", "share"),  # know nothing of the page
    *("state", "facts", "draw", "ask", "build", "act", "address", "camera", "keep", "main"),
)
WORKER = ("worker",)


@dataclass(frozen=True)
class WebPage:
    """The file, and how far its graphs are from the classifier."""

    html: bytes = field(repr=False)
    agreed: dict[str, Any]
    examples: int
    half: bool

    def to_json(self) -> dict[str, Any]:
        """As the command line says it."""
        return {"format": "web", "bytes": len(self.html), "half": self.half, "examples": self.examples, **self.agreed}


def render_page(
    classifier: Classifier, examples: Sequence[str | Path] | None = None, *, model: str = "", **options: Any
) -> bytes:
    """The page as bytes: to be written to a file, or answered at `/`; options as in `make_page`."""
    return make_page(classifier, examples, model=model, **options).html


def export_web(
    classifier: Classifier, out: str | Path, examples: Sequence[str | Path] | None = None, **options: Any
) -> dict[str, Any]:
    """Writes the page, whole or not at all, and says what was compared; options as in `make_page`.

    Raises `UsageError` where the file exists already.
    """
    path = Path(out)
    if path.exists():
        raise UsageError(f"{path} exists already", "choose another --out")
    page = make_page(classifier, examples, **options)
    write_atomically(path, lambda aside: aside.write_bytes(page.html))
    return {"file": str(path), **page.to_json()}


def make_page(
    classifier: Classifier,
    examples: Sequence[str | Path] | None = None,
    *,
    model: str = "",
    title: str | None = None,
    data: str | Path | None = None,
    half: bool = False,
    limit: float = MAX_PAGE_MB,
) -> WebPage:
    """The page of a classifier, with these images as examples (or others, see `examples.chosen`).

    `model` is what people type to load the classifier, `title` what stands at the top, `data` what it was trained on;
    `half` stores weights in float16. Raises `UsageError` where the classifier knows no classes, where onnx is not
    installed, or where the page would have more than `limit` megabytes; `VitrailError` where the graphs do not agree
    with the classifier.
    """
    classifier.require_classes()
    import_onnx()
    check_page_size(classifier, half, limit)
    floats = replace(classifier, vit=deepcopy(classifier.vit).to("cpu", torch.float32).eval().requires_grad_(False))
    shown = choose_examples(floats, examples, data)
    graphs = pack_graphs(trace_graphs(floats), half)
    agreed = verify_graphs(floats, graphs, [example.pixels for example in shown])
    about = {**described(floats, model, title, half, agreed), "examples": precompute_examples(floats, shown)}
    return WebPage(assembled(about, graphs).encode(), agreed, len(shown), half)


def check_page_size(classifier: Classifier, half: bool, limit: float) -> None:
    """Raises `UsageError` where the page would be larger than the limit, before any work."""
    numbers = sum(parameter.numel() for parameter in classifier.vit.parameters())
    weights = numbers * (2 if half else 4) * 0.93  # what gzip leaves of trained weights
    whole = (weights + sum(len(vendored(name)) for name in RUNTIME.values())) * 4 / 3 / 1e6 + 0.4
    if whole > limit:
        rescue = "" if half else f"--precision fp16 makes it about {(whole - weights * 2 / 3 / 1e6):.0f}; "
        raise UsageError(
            f"the page would have about {whole:.0f} MB, more than {limit:g}",
            f"{rescue}--max-size-mb {whole + 1:.0f} allows it",
        )


def described(
    classifier: Classifier, model: str, title: str | None, half: bool, agreed: dict[str, Any]
) -> dict[str, Any]:
    """What the page has to know of the classifier, and what it says of it."""
    config, origin = classifier.vit.config, classifier.origin
    scores = origin.get("metrics", {}).get("test") or {}
    name = title or Path(model).name or origin.get("card") or "classifier"
    return {
        "name": str(name).removesuffix(".safetensors"),
        "model": typed(model),
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
        "temperature": classifier.temperature,
        "accuracy": scores.get("accuracy"),
        "accuracy_interval": scores.get("accuracy_interval"),
        "images": scores.get("images"),
        "data": origin.get("data", {}).get("name"),
        "method": DEFAULT_METHOD,
        "about": METHODS[DEFAULT_METHOD].description,
        "half": half,
        "agreed": agreed,
        "vitrail": __version__,
    }


def typed(model: str) -> str:
    """What readers are to type for the model; of a path from the root only its end, which is nobody's business else."""
    return (Path(model).name if Path(model).is_absolute() else model) or "MODEL"


def assembled(about: dict[str, Any], graphs: Graphs) -> str:
    """The template with everything in its place: what is drawn first stands first, what is large comes last."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    payloads = {name: b64encode(vendored(file)).decode() for name, file in RUNTIME.items()}
    payloads |= {f"graph-{name}": zipped(graph) for name, graph in graphs.graphs.items()}
    payloads["weights"] = zipped(graphs.weights)
    environment = Environment(
        loader=FunctionLoader(read_site_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template("index.html").render(
        about=about,
        style=Markup(read_site_file("style.css")),
        script=Markup(script(PAGE_MODULES)),
        worker=Markup(script(WORKER)),
        payloads=payloads,
        licence=vendored("LICENSE").decode(),
    )
    return page


def script(modules: Sequence[str]) -> str:
    """Modules one after the other in one scope: what they import from one another is there already.

    A page that is opened from disk may not load modules; as names are unique, leaving out `import` and `export` is all
    that joining them takes.
    """
    joined = "\n".join(
        re.sub(r"^import .*?;\n", "", read_site_file(f"{name}.js"), flags=re.M | re.S) for name in modules
    )
    return re.sub(r"^export ", "", joined, flags=re.M)


def zipped(content: bytes) -> str:
    """Bytes as they lie in the page: gzip in base64."""
    return b64encode(gzip.compress(content, 9, mtime=0)).decode()


def read_site_file(name: str) -> str:
    """A file of the page's source."""
    return files("vitrail.exporting.web").joinpath("site", name).read_text(encoding="utf-8")


def vendored(name: str) -> bytes:
    """A file of the runtime."""
    return files("vitrail.exporting.web").joinpath("vendor", name).read_bytes()
