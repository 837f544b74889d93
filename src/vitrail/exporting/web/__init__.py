"""A classifier as one HTML file: the model, its runtime and the page around them, with nothing asked from outside.

page       everything together, compared and within its limit
graphs     what the page asks of the model, as ONNX
examples   the images that it shows before anyone brings their own
agreement  whether the graphs answer as the classifier does
site/      the page itself: HTML, CSS and JavaScript as a reader of the source wants them; nothing builds them
vendor/    ONNX Runtime's WebAssembly build, with its licence
"""

from vitrail.exporting.web.page import export_web, render_page

__all__ = ["export_web", "render_page"]
