"""The page at /: what `vitrail export --format web` makes; a plain form where that cannot be."""

import html

from vitrail.classifier import AnyClassifier, Classifier
from vitrail.errors import VitrailError
from vitrail.export.web import web_page

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

FORM = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name} · vitrail</title>
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}}
button,input{{font:inherit}}</style>
<h1>{name}</h1>
<p>{about}</p>
<form method="post" enctype="multipart/form-data" action="/predict?model={name}">
<p><label>An image file <input type="file" name="image" accept="image/*" required></label>
<p><button>Predict</button>
<button formaction="/explain?model={name}&amp;picture=panels">Explain</button>
</form>
</html>
"""


def page_of(classifier: AnyClassifier, name: str) -> bytes:
    """The page of one model, as one HTML file."""
    if not isinstance(classifier, Classifier):
        return plain_page(classifier, name)
    try:
        return web_page(classifier, model=name)
    except VitrailError:  # too large for a page, or without classes
        return plain_page(classifier, name)


def plain_page(classifier: AnyClassifier, name: str) -> bytes:
    """A form that sends an image to /predict or /explain."""
    about = f"{len(classifier.classes)} classes: {', '.join(classifier.classes[:12])}"
    more = ", ..." if len(classifier.classes) > 12 else ""
    return FORM.format(name=html.escape(name), about=html.escape(about + more)).encode()
