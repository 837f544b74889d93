"""Finds the images of a source that are most similar to others, by the cosine of their features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images
from vitrail.data.source import Source
from vitrail.evaluation.features import extract_features
from vitrail.files import write_atomically
from vitrail.image_documents import SimilarDocument, SimilarImage

MAX_CHUNK = 1 << 16  # images of the source that are compared at once
INCHES = 1.2  # of an image in the picture


@dataclass(frozen=True)
class SimilarSearch:
    """The readable images of a source, split by split, and their features (n, D)."""

    splits: dict[str, Images]  # the label of an image is its number in its listing
    labels: list[str]
    features: np.ndarray
    unreadable: tuple[ImageError, ...] = ()

    def find(self, queries_MD: np.ndarray, paths: Sequence[str], count: int) -> list[SimilarDocument]:
        """Returns the `count` most similar images for each query, the most similar first.

        A query that is itself an image of the source, by its path, is not similar to itself.
        """
        places = [(split, i) for split, images in self.splits.items() for i in range(len(images))]
        queries = F.normalize(torch.from_numpy(queries_MD), dim=1)
        chunks = torch.split(torch.from_numpy(self.features), MAX_CHUNK)
        cosines_MN = torch.cat([queries @ F.normalize(chunk, dim=1).T for chunk in chunks], dim=1)
        documents: list[SimilarDocument] = []
        for path, cosines_N in zip(paths, cosines_MN, strict=True):
            nearest = cosines_N.topk(min(count + 1, len(cosines_N)))
            rows: list[SimilarImage] = []
            for similarity, k in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
                split, i = places[k]
                found = self.splits[split].paths[i]
                if Path(found).absolute() != Path(path).absolute():
                    row: SimilarImage = {
                        "path": found,
                        "label": self.labels[k],
                        "split": split,
                        "similarity": similarity,
                    }
                    rows.append(row)
            documents.append({"path": path, "similar": rows[:count]})
        return documents

    def read(self, row: SimilarImage) -> Tensor:
        """Returns the pixels of a found image, (C, h, w)."""
        images = self.splits[row["split"]]
        return images[list(images.paths).index(row["path"])]


def open_search(
    classifier: Classifier,
    source: Source,
    *,
    batch_size: int = 64,
    cache: bool = True,
    skip_unreadable: bool = False,
    on_batch: Callable[[int], object] = lambda images: None,
) -> SimilarSearch:
    """Returns the images of all splits of a source with their features, which the cache keeps.

    Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are left out.
    """
    splits: dict[str, Images] = {}
    labels: list[str] = []
    features: list[np.ndarray] = []
    unreadable: list[ImageError] = []
    for split, listing in source.splits.items():
        if not len(listing):
            continue
        locations = listing.pixels.locations() if isinstance(listing.pixels, EncodedImages) else None
        images = Images(listing.pixels, listing.names, np.arange(len(listing)), (), locations)
        errors: list[ImageError] = []
        features.append(
            extract_features(
                classifier,
                images,
                batch_size=batch_size,
                cache=cache,
                on_batch=on_batch,
                on_error=errors.append if skip_unreadable else None,
            )
        )
        splits[split] = images.exclude(errors)
        labels += [str(listing.labels[int(i)]) for i in splits[split].labels]
        unreadable += errors
    return SimilarSearch(splits, labels, np.concatenate(features), tuple(unreadable))


def to_display(pixels_CHW: Tensor) -> np.ndarray:
    """Returns pixels for a picture, (h, w, C); those of more than 8 bits are stretched to 0 to 255."""
    if pixels_CHW.dtype != torch.uint8:
        values = pixels_CHW.float()
        span = (values.max() - values.min()).clamp(min=1e-6)
        pixels_CHW = ((values - values.min()) / span * 255).round().byte()
    return pixels_CHW.permute(1, 2, 0).numpy()


def draw_similar(
    search: SimilarSearch, queries: Sequence[Tensor], documents: Sequence[SimilarDocument], path: Path
) -> None:
    """Writes a picture with a row for each query: the query (C, h, w), then its similar images."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(each["similar"]) for each in documents)
    figure = Figure(figsize=(INCHES * columns, (INCHES + 0.4) * len(documents)), layout="constrained")
    grid = figure.subplots(len(documents), columns, squeeze=False)
    for row, query, document in zip(grid, queries, documents, strict=True):
        tiles = [(query, Path(document["path"]).name)]
        tiles += [(search.read(each), f"{each['label']}\n{each['similarity']:.3f}") for each in document["similar"]]
        for axes in row:
            axes.set_axis_off()
        for axes, (pixels_CHW, title) in zip(row, tiles, strict=False):
            image = to_display(pixels_CHW)
            axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.set_title(title[:24], fontsize=7, parse_math=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format=path.suffix[1:] or "png"))
