"""What a reader should know first: a few sentences, each with how much it matters."""

from typing import Any

GOOD, NOTE, WARN = "good", "note", "warn"
SHOWN_CLASSES = 4


def findings(document: dict[str, Any]) -> list[dict[str, str]]:
    """Sentences in the order of the report's parts; `level` is good, note or warn, `part` the part's anchor."""
    rows: list[tuple[str, str, str] | None] = [
        _classes(document),
        _confused(document),
        _calibration(document),
        _abstain(document),
        _looks(document),
        _maps(document),
        _labels(document),
        _copies(document),
        _properties(document),
        _corruptions(document),
    ]
    return [{"level": level, "text": text, "part": part} for level, text, part in filter(None, rows)]


def _classes(document: dict[str, Any]) -> tuple[str, str, str] | None:
    rows = [row for row in document["per_class"] if row["images"]]
    if len(rows) < 2:
        return None
    weakest = min(rows, key=lambda row: row["recall"])
    best = max(rows, key=lambda row: row["recall"])
    apart = weakest["recall_interval"][1] < best["recall_interval"][0]
    if not apart:
        return GOOD, "No class is clearly weaker than the others.", "classes"
    return (
        WARN if weakest["recall"] < 0.5 else NOTE,
        f"The weakest class is {weakest['class']}: {percent(weakest['recall'])} of its images are found, against "
        f"{percent(best['recall'])} of {best['class']}.",
        "classes",
    )


def _confused(document: dict[str, Any]) -> tuple[str, str, str] | None:
    if not document["most_confused"]:
        return GOOD, "No image is mistaken.", "confusion"
    first = document["most_confused"][0]
    support = {row["class"]: row["images"] for row in document["per_class"]}[first["true"]]
    return (
        NOTE,
        f"The most frequent mistake is {first['true']} taken for {first['predicted']}: {first['images']} of "
        f"{support} images.",
        "confusion",
    )


def _calibration(document: dict[str, Any]) -> tuple[str, str, str]:
    c = document["calibration"]
    before, after = c["before"], c["after"]
    now = after if after and c["kept"] else before
    gap = now["confidence"] - document["summary"]["accuracy"]
    manner = "too sure" if gap > 0 else "not sure enough"
    if after is None:
        why = f" No temperature was fitted: {c['why']}." if c["why"] else ""
        level = NOTE if now["ece"] > 0.03 else GOOD
        return level, f"Its probabilities are off by {points(now['ece'])} on average ({manner}).{why}", "calibration"
    if c["kept"]:
        return (
            GOOD if after["ece"] <= before["ece"] else WARN,
            f"A temperature of {c['temperature']:.2f} takes the mean error of its probabilities from "
            f"{points(before['ece'])} to {points(after['ece'])}.",
            "calibration",
        )
    return (
        NOTE,
        f"Its probabilities are off by {points(before['ece'])} on average ({manner}); a temperature of "
        f"{c['temperature']:.2f} would make that {points(after['ece'])} (vitrail evaluate --fit-temperature keeps it).",
        "calibration",
    )


def _abstain(document: dict[str, Any]) -> tuple[str, str, str] | None:
    row = next((r for r in document["abstain"]["thresholds"] if r["wanted"] == document["abstain"]["advised"]), None)
    if row is None or row["accuracy"] is None:
        return None
    return (
        NOTE,
        f"Answering only from a probability of {row['threshold']:.2f} on, it answers {percent(row['coverage'])} of the "
        f"images and is right in {percent(row['accuracy'])} of those.",
        "abstain",
    )


def _looks(document: dict[str, Any]) -> tuple[str, str, str] | None:
    looks = document["looks"]
    if looks["border_area"] is None:
        return None
    alarmed = [row["class"] for row in looks["classes"] if row["alarm"]]
    if not alarmed:
        return GOOD, "In no class does the evidence gather on the border of the image.", "looks"
    return (
        WARN,
        f"Shortcut alarm: for {listed(alarmed)} the evidence gathers on the border of the image. Is it the object that "
        "the model knows?",
        "looks",
    )


def _maps(document: dict[str, Any]) -> tuple[str, str, str] | None:
    table = document["faithfulness"]
    if table is None:
        return None
    default, by_lot = (table["methods"].get(name, {}).get("deletion") for name in (table["default"], "random"))
    if not default or not by_lot:
        return None
    better = default["interval"][1] < by_lot["interval"][0]
    return (
        GOOD if better else WARN,
        f"Its maps {'find what its answers rest on' if better else 'are no better than chance'}: without the patches "
        f"they name first the probability averages {default['mean']:.2f}, without random ones {by_lot['mean']:.2f}.",
        "faithfulness",
    )


def _labels(document: dict[str, Any]) -> tuple[str, str, str]:
    n = document["labels"]["suspected"]
    if not n:
        return GOOD, "No label is suspect.", "labels"
    part = n / document["data"]["images"]
    return NOTE, f"{n:,} labels ({percent(part)}) are worth a second look.", "labels"


def _copies(document: dict[str, Any]) -> tuple[str, str, str] | None:
    found = document["copies"]
    if len(found["looked_at"]) < 2 and not found["within"]:
        return None
    seen = found["across"].get("train", 0)
    if seen:
        rest = found["accuracy_without"]
        return (
            WARN,
            f"{seen:,} pair{'s' if seen > 1 else ''} of near-duplicates lie across training and these images"
            + (f"; without those images the accuracy is {percent(rest)}." if rest is not None else "."),
            "copies",
        )
    if found["under_two_labels"]:
        n = found["under_two_labels"]
        return WARN, f"{n:,} pair{'s' if n > 1 else ''} of near-duplicates carry two different labels.", "copies"
    if found["within"]:
        n = found["within"]
        return NOTE, f"{n:,} pair{'s' if n > 1 else ''} of near-duplicates among these images.", "copies"
    if "train" not in found["looked_at"]:
        return None
    return GOOD, "No image is a near-duplicate of a training image.", "copies"


def _properties(document: dict[str, Any]) -> tuple[str, str, str] | None:
    gaps = []
    for name, found in document["properties"]["by"].items():
        rows = found["rows"]
        if len(rows) > 1:
            low, high = min(rows, key=lambda r: r["accuracy"]), max(rows, key=lambda r: r["accuracy"])
            if low["interval"][1] < high["interval"][0]:
                gaps.append((high["accuracy"] - low["accuracy"], name, low, high))
    if not gaps:
        return None
    gap, name, low, high = max(gaps, key=lambda g: g[0])
    return (
        NOTE,
        f"By {name} the accuracy differs by {points(gap)}: {percent(low['accuracy'])} where it is from "
        f"{short(low['from'])} to {short(low['to'])}, {percent(high['accuracy'])} from {short(high['from'])} to "
        f"{short(high['to'])}.",
        "properties",
    )


def _corruptions(document: dict[str, Any]) -> tuple[str, str, str] | None:
    found = document["corruptions"]
    if not found:
        return None
    row = min(found["corruptions"].values(), key=lambda row: row["levels"][-1]["accuracy"])
    return (
        NOTE,
        f"Corrupted images cost {points(found['clean'] - found['mean'])} on average; the worst is {row['about']} at "
        f"its strongest, with {percent(row['levels'][-1]['accuracy'])}.",
        "corruptions",
    )


def percent(part: float) -> str:
    """A part as a percentage, to a tenth."""
    return f"{100 * part:.1f}\u00a0%"


def points(part: float) -> str:
    """A difference of parts in percentage points."""
    return f"{100 * part:.1f}\u00a0points"


def short(value: float) -> str:
    """A number in three digits."""
    return f"{value:.3g}"


def listed(names: list[str]) -> str:
    """a, b and c; of many the first few and how many more."""
    if len(names) > SHOWN_CLASSES:
        return f"{', '.join(names[:SHOWN_CLASSES])} and {len(names) - SHOWN_CLASSES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
