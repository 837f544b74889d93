"""Caveats: the limits of the numbers in a report."""

from typing import Any

from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.report.budget import describe_shortened

MIN_CLASS_IMAGES = 30


def write_caveats(document: dict[str, Any]) -> list[str]:
    """Returns sentences that hold for this document, the general ones first."""
    sentences = [
        "All numbers are for images like these. Images from another camera, place or time can give other numbers.",
        f"Intervals are 95% confidence intervals. They cover the choice of these {document['data']['images']:,} "
        "images, not the variation between trainings.",
        "Precision and F1 depend on the class frequencies in these images; recall does not.",
    ]
    if document["groups"]:
        sentences.append(
            "Images of a group are alike. The intervals of accuracy, balanced accuracy and macro F1 are those of other "
            "groups; all others take images as independent and may be too narrow."
        )
        sentences.append(
            "What the accuracy would be if the images were divided at random, without regard to groups, is not "
            "computed: it needs other trainings. Compare `vitrail train DATA --folds 5` with and without "
            "--group-pattern, or with and without the column of groups."
        )
    if shortened := document["shortened_parts"]:
        sentences.append(
            "The report of a run takes at most a quarter of the time of training, so these parts use fewer images: "
            f"{describe_shortened(shortened)}. The command under Reproduce uses all."
        )
    if document["summary"].get("optimistic"):
        sentences.append(f"These are validation images, {OPTIMISTIC_NOTE}.")
    elif document["data"]["split"] != "test":
        sentences.append("These images are not a test split: the model may have been trained on some or all of them.")
    small = sum(row["images"] < MIN_CLASS_IMAGES for row in document["per_class"])
    if small:
        sentences.append(
            f"{small} of {len(document['classes'])} classes have fewer than {MIN_CLASS_IMAGES} images here, so their "
            "scores are uncertain."
        )
    if document["selective_prediction"]["thresholds"]:
        sentences.append(
            "The guarantee of a threshold is for images like those on which it was chosen. The same images selected "
            "the temperature and, in training, the weights; the accuracy on the scored images is the check."
        )
    if document["calibration"]["optimistic"]:
        sentences.append("The temperature was fitted on these images, so the calibration after it is optimistic.")
    sentences.append(
        "A relevance map shows what the prediction depends on, as far as the method can tell; it does not outline the "
        "object. A mean map hides differences between images."
    )
    if document["attribution"]["border_area"] is not None:
        sentences.append(
            "Evidence on the border can be right, since some objects are there; padded images have no evidence there."
        )
    if document["faithfulness"] is None:
        sentences.append("The faithfulness of the maps was not measured here; vitrail faithfulness measures it.")
    sentences.append(
        "For a suspected label error, model and label disagree. That the label is wrong is an estimate: it assumes "
        "that the mistakes of the model become rare as its confidence grows."
    )
    if skipped := document["near_duplicates"]["skipped_splits"]:
        sentences.append(f"Near-duplicates were not searched in {' and '.join(skipped)}: there are too many images.")
    sentences.append(
        "Near-duplicates are not detected if one image is cropped noticeably, or if images are smaller than 16 pixels."
    )
    sentences.append("In the embedding map only close neighbors are meaningful; distances between groups are not.")
    if document["corruptions"]:
        sentences.append(
            "The corruptions are six types with our own strengths; they do not replace images from another source."
        )
    return sentences
