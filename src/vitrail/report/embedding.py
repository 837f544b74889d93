"""The embedding of the scored images: a 2-D map, and the classes of nearest neighbors."""

from typing import Any

from vitrail.classifier import Classifier
from vitrail.evaluation import Outcome
from vitrail.evaluation.embedding import neighbor_purity, pooled_features, project_to_2d
from vitrail.report.embedding_map import draw_embedding_map
from vitrail.report.sample import Sample

PICTURE = "embedding"


def collect_embedding(
    classifier: Classifier, outcome: Outcome, sample: Sample
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the section and the picture of the map by its name in the section."""
    indices = sample.selection.embedding
    labels = outcome.labels[indices]
    pixels = sample.batch(indices)
    features = pooled_features(classifier, pixels)
    positions, method = project_to_2d(features)
    pictures = classifier.preprocess.to_picture(pixels)
    picture, centers = draw_embedding_map(pictures, positions, labels, outcome.correct[indices])
    points = [
        {
            "image": int(i),
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "true": int(outcome.labels[i]),
            "predicted": int(outcome.predicted[i]),
        }
        for i, (x, y) in zip(indices, centers, strict=True)
    ]
    section = {
        "images": len(indices),
        "method": method,
        "picture": PICTURE,
        "points": points,
        "neighbor_purity": neighbor_purity(features, labels, outcome.classes),
    }
    return section, {PICTURE: picture}
