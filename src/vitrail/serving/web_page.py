"""The page at /: the page of `vitrail export --format web`, or a plain HTML form if the model has no such page."""

import html
from importlib.util import find_spec

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.web import render_page
from vitrail.exporting.web.page import MAX_PAGE_MB, check_page_size
from vitrail.installation import install_hint
from vitrail.serving.logs import log
from vitrail.tasks import refuse_task

# Allows only the page's own content: inline scripts, WebAssembly, workers from blobs, and images that the user selects.
# The page cannot load anything else, and no other page can embed or access it.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob: data:; "
        "worker-src 'self' blob:; style-src 'unsafe-inline'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "font-src data:; connect-src 'self' blob: data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
}

PLAIN_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name} · vitrail</title>
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}}
button,input{{font:inherit}}</style>
<h1>{name}</h1>
<p>{description}</p>
{form}
</html>
"""
IMAGE_FORM = """<form method="post" enctype="multipart/form-data">
<p><label>Image file <input type="file" name="image" accept="image/*" required></label>
<p>{buttons}
</form>"""
PREDICT_BUTTON = '<button formaction="/predict?model={name}">Predict</button>'
EXPLAIN_BUTTON = '<button formaction="/explain?model={name}&amp;picture=panels">Explain</button>'


def reason_for_plain_page(classifier: BaseClassifier | None) -> str | None:
    """Returns why a model gets the plain form and what to do about it; None if it gets the full page.

    `classifier` is None for a model from an exported file. This check is cheap: it imports no exporter. If the export
    itself fails later, `make_page` falls back to the plain form too.
    """
    if not isinstance(classifier, Classifier):
        return "an exported file cannot be explained; serve the classifier that it was exported from"
    try:
        classifier.require_classes()
        refuse_task(classifier.task, "web")
        classifier.preprocess.refuse_bands("the web page reads 8-bit gray and color images", "use /predict")
        check_page_size(classifier, half=False, limit=MAX_PAGE_MB)
    except UsageError as error:
        return error.sentence
    missing = [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]
    return f"{missing[0]} is not installed: {install_hint('export')}" if missing else None


def make_page(classifier: BaseClassifier, name: str, can_explain: bool) -> bytes:
    """Returns the page of one model as one HTML file; `can_explain`: the server offers /explain for it."""
    if reason_for_plain_page(classifier) is None:
        assert isinstance(classifier, Classifier)
        try:
            return render_page(classifier, model=name)
        except VitrailError as error:
            log("plain_page", model=name, why=str(error))
    return make_plain_page(classifier, name, can_explain)


def make_plain_page(classifier: BaseClassifier, name: str, can_explain: bool) -> bytes:
    """Returns an HTML form with buttons for the routes that the model supports: /predict and /explain."""
    classes = classifier.classes
    description = f"{len(classes)} classes: {', '.join(classes[:12])}" if classes else "Features, no classes"
    ellipsis = ", ..." if len(classes) > 12 else ""
    name = html.escape(name)
    buttons = (PREDICT_BUTTON if classes else "") + (EXPLAIN_BUTTON if can_explain else "")
    form = IMAGE_FORM.format(buttons=buttons.format(name=name)) if buttons else ""
    return PLAIN_PAGE.format(name=name, description=html.escape(description + ellipsis), form=form).encode()
