"""A relevance map of an image with the settings that made it, and its description as text."""

import math
from dataclasses import dataclass, field

import numpy as np

from vitrail.explanation.methods import Method, find_method
from vitrail.json_types import JsonObject


@dataclass(frozen=True)
class RelevanceMap:
    """A map (h, w) over the patches of an image: the evidence for `label`, or for it rather than `against`.

    In the map of a signed method, values below zero are evidence against the class. The map of a class-blind method is
    the same for every class. `probability` is that of `label`, `predicted` the model's own answer, and `image` what the
    model saw, uint8 (H, W, C). `layer`, `head` and `query` are None where the method takes none; `head` is also None
    where the map is the mean over heads. `number` is the predicted value if `label` is the name of a number; the map is
    then the evidence for a higher value, and below zero for a lower one. A model without classes has class-blind maps
    only, with an empty label and a probability of NaN.
    """

    map: np.ndarray
    label: str
    probability: float
    method: str
    image: np.ndarray = field(repr=False)
    predicted: str = ""
    against: str | None = None
    layer: int | None = None
    head: int | None = None
    query: tuple[int, int] | None = None
    number: float | None = None
    content: np.ndarray | None = field(default=None, repr=False)
    padding_share: float = 0.0

    @property
    def content_patches(self) -> np.ndarray:
        """Which patches hold any of the photo: bool (h, w)."""
        return np.ones(self.map.shape, dtype=bool) if self.content is None else self.content

    @property
    def _method(self) -> Method:
        return find_method(self.method)

    @property
    def class_blind(self) -> bool:
        """Whether the map is the same for every class."""
        return self._method.class_blind

    @property
    def signed(self) -> bool:
        """Whether values below zero are evidence against the class."""
        return self._method.signed

    @property
    def cost(self) -> str:
        """The passes through the model that the map takes, as text."""
        return self._method.cost

    @property
    def question(self) -> str:
        """What the map shows, as text."""
        if self.query is not None:
            return f"what the patch in row {self.query[0]}, column {self.query[1]} attends to"
        if self.class_blind:
            return "where the model looks"
        rather = f" rather than {self.against}" if self.against is not None else ""
        higher = "a higher " if self.number is not None else ""
        return f"evidence for {higher}{self.label}{rather}"

    @property
    def summary(self) -> str:
        """The map as a sentence: how many patches hold half of the positive evidence, and where most of it is."""
        probability = "" if math.isnan(self.probability) else f"{self.probability:.0%}, "
        if self.number is not None:
            probability = f"{self.number:.4g}, "
        return (
            f"{self.question} ({probability}{self.method}): {summarize_map(self.map, int(self.content_patches.sum()))}"
        )

    def to_json(self) -> JsonObject:
        """Returns the map and the settings that made it, as JSON values."""
        return {
            "label": self.label,
            "probability": None if math.isnan(self.probability) else self.probability,
            **({} if self.number is None else {"number": self.number}),
            "predicted": self.predicted,
            "against": self.against,
            "method": self.method,
            "layer": self.layer,
            "head": self.head,
            "query": None if self.query is None else list(self.query),
            "class_blind": self.class_blind,
            "signed": self.signed,
            "cost": self.cost,
            **({"padding_share": round(self.padding_share, 6)} if self.content is not None else {}),
            "map": [[round(value, 6) for value in row] for row in self.map.tolist()],
        }


def summarize_map(map_hw: np.ndarray, content_count: int) -> str:
    """How many of the photo's patches hold half of the positive evidence, and which ninth of the image the most."""
    positive_hw = np.maximum(map_hw, 0)
    total = positive_hw.sum()
    if total == 0:
        return "nothing in the image"
    cumulative = np.sort(positive_hw.ravel())[::-1].cumsum() / total
    patches = int((cumulative < 0.5).sum()) + 1
    ninths = {
        f"{row} {column}": float(ninth.sum())
        for row, band in zip(("upper", "middle", "lower"), np.array_split(positive_hw, 3, axis=0), strict=True)
        for column, ninth in zip(("left", "center", "right"), np.array_split(band, 3, axis=1), strict=True)
    }
    strongest = max(ninths, key=ninths.__getitem__)
    share = f"{ninths[strongest] / total:.0%}"
    return f"half of it is in {patches} of {content_count} patches, most in the {strongest} ({share})"
