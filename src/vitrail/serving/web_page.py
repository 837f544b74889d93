"""The page at /: what `vitrail export --format web` makes; a plain form where that cannot be."""

import html
from importlib.util import find_spec

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.web import render_page
from vitrail.exporting.web.page import MAX_PAGE_MB, check_page_size
from vitrail.serving.logs import log

# Only what the page itself brings: its own scripts and WebAssembly, in a worker made from a blob, and pictures that it
# was given. Nothing else can be loaded, and no other page can frame it or look into it.
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
<p>{about}</p>
{form}
</html>
"""
IMAGE_FORM = """<form method="post" enctype="multipart/form-data">
<p><label>An image file <input type="file" name="image" accept="image/*" required></label>
<p>{buttons}
</form>"""
PREDICT_BUTTON = '<button formaction="/predict?model={name}">Predict</button>'
EXPLAIN_BUTTON = '<button formaction="/explain?model={name}&amp;picture=panels">Explain</button>'


def reason_for_plain_page(classifier: BaseClassifier | None) -> str | None:
    """Why a model (None: one in an ONNX file) gets the plain form, and what helps; None where it gets the whole page.

    Nothing is imported for it, and nothing made: that the graphs do not agree shows only when the page is asked for.
    """
    if not isinstance(classifier, Classifier):
        return "an ONNX file has no inside to show; serve the classifier that it was made from"
    try:
        classifier.require_classes()
        check_page_size(classifier, half=False, limit=MAX_PAGE_MB)
    except UsageError as error:
        return error.sentence
    missing = [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]
    return f"{missing[0]} is not installed: pip install 'vitrail[export]'" if missing else None


def make_page(classifier: BaseClassifier, name: str, explains: bool) -> bytes:
    """The page of one model, as one HTML file; `explains` says whether the server does."""
    if reason_for_plain_page(classifier) is None:
        assert isinstance(classifier, Classifier)
        try:
            return render_page(classifier, model=name)
        except VitrailError as error:
            log("plain_page", model=name, why=str(error))
    return make_plain_page(classifier, name, explains)


def make_plain_page(classifier: BaseClassifier, name: str, explains: bool) -> bytes:
    """A form that sends an image to where it is answered: /predict, /explain, both or neither."""
    classes = classifier.classes
    about = f"{len(classes)} classes: {', '.join(classes[:12])}" if classes else "Features, no classes"
    more = ", ..." if len(classes) > 12 else ""
    name = html.escape(name)
    buttons = (PREDICT_BUTTON if classes else "") + (EXPLAIN_BUTTON if explains else "")
    form = IMAGE_FORM.format(buttons=buttons.format(name=name)) if buttons else ""
    return PLAIN_PAGE.format(name=name, about=html.escape(about + more), form=form).encode()
