"""The result of an explanation method for one image."""

import base64
import html
from pathlib import Path

from vitrail.explanation.figures import render_png, save_explanation
from vitrail.explanation.relevance_map import RelevanceMap


class Explanation(RelevanceMap):
    """A relevance map that can be saved as a figure, and is one in a notebook."""

    def save(self, path: str | Path, smooth: bool = False) -> Path:
        """Writes image, map and overlay side by side, in the format of the file name's suffix (PNG, SVG, PDF).

        `smooth` interpolates between patches. This changes the picture only: the map is as coarse as its patches.
        """
        return save_explanation(self, Path(path), smooth)

    def _repr_png_(self) -> bytes:
        return render_png(self)

    def _repr_html_(self) -> str:
        png = base64.b64encode(self._repr_png_()).decode()
        text = html.escape(self.summary)
        return f'<figure><img alt="{text}" src="data:image/png;base64,{png}"><figcaption>{text}</figcaption></figure>'
