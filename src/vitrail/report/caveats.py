"""What the numbers of a report do not say."""

from typing import Any

from vitrail.data.scoring import OPTIMISTIC_NOTE


def limits(document: dict[str, Any]) -> list[str]:
    """Sentences for this report, the general ones first."""
    n = document["data"]["images"]
    said = [
        "Every number holds for images like these. Another camera, place or time can change all of them.",
        f"Intervals are 95 % and cover which {n:,} images happened to be drawn, not another training of the model.",
        "Precision and F1 depend on how frequent each class is here; recall does not.",
    ]
    if document["summary"].get("optimistic"):
        said.append(f"These are the validation images {OPTIMISTIC_NOTE}.")
    elif document["data"]["split"] != "test":
        said.append("These images are not a test split: the model may have been trained on some or all of them.")
    small = [row["class"] for row in document["per_class"] if row["images"] < 30]
    if small:
        said.append(f"{len(small)} of the classes have fewer than 30 images here; their rows say little.")
    if document["calibration"]["optimistic"]:
        said.append("The temperature was fitted on these very images: calibration after it looks better than it is.")
    looks = document["looks"]
    said.append(
        "A map shows what this model's answer rests on, as far as the method can tell; it does not show what the "
        "object is. A mean map hides images that differ from one another."
    )
    if looks["border_area"] is not None:
        said.append("Evidence on the border can be right: some things lie there, and padded images have none.")
    if document["faithfulness"] is None:
        said.append("The maps of this model were not scored here; vitrail faithfulness does it.")
    said.append(
        "Suspected label errors are the model's word against the label's. Most mistakes of a weak model are its own."
    )
    if document["copies"]["left_out"]:
        left = " and ".join(document["copies"]["left_out"])
        said.append(f"Copies were not looked for in {left}: there are too many images.")
    said.append("Copies that are cropped by more than a little are not found, nor among images below 16 pixels.")
    said.append("In the map of alike images only nearness has a meaning; distances between far groups have none.")
    if document["corruptions"]:
        said.append(
            "The corruptions are six kinds in strengths of our own: they are no stand-in for images from elsewhere."
        )
    return said
