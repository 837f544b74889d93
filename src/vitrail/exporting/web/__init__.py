"""A classifier as one HTML file: the model, its runtime and the page, without any request to the network.

page       builds the page, verifies it and checks its size
graphs     the ONNX graphs that the page runs
examples   the images that it shows first
verify     compares the graphs with the classifier
bundle     joins the JavaScript modules into one script
site/      the source of the page: HTML, CSS and JavaScript modules
vendor/    ONNX Runtime's WebAssembly build, with its license
"""

from vitrail.exporting.web.page import export_web, render_page

__all__ = ["export_web", "render_page"]
