"""The functions that make findings from a survey, each for one kind of problem; `FINDERS` lists them in order."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vitrail.data.decode import GRAY_16_BIT, ImageUnreachable
from vitrail.data.facts import ImageFacts
from vitrail.data.findings import Code, Finding
from vitrail.data.formats import EXTENSIONS_OF_FORMAT
from vitrail.data.groups import count_crossing, find_crossing_groups, suggest_groups
from vitrail.data.labels import NO_LABEL, LabelSets, Numbers
from vitrail.data.near_duplicates import MAX_PAIRS
from vitrail.data.survey import ImageRecord, Survey, are_across_splits, have_conflicting_labels
from vitrail.tasks import MULTI_LABEL, REGRESSION

FAR_RANGES = 10  # interquartile ranges from the median, beyond which a number is far from the others
MIN_CLASS_IMAGES = 10  # fewer make the training and the score of a class unreliable
MAX_IMBALANCE = 10  # largest class over smallest
DEFAULT_BATCH_SIZE = 16  # which recipes choose for few images
LABEL_SEPARATORS = ("|", ";")  # of several classes in one label
SMALL_FACTOR = 4  # times smaller than the median size
LARGE_PIXELS = 25_000_000  # decoding such an image takes longer than training on it
MAX_ASPECT_RATIO = 3
MAX_CROP_LOSS = 0.3  # fraction of an image that a crop may remove without a warning

Findings = Iterator[Finding]
Image = tuple[ImageRecord, ImageFacts]


def find_damage(survey: Survey) -> Findings:
    for reason in survey.source.damaged:
        yield Finding(Code.DAMAGED_SOURCE, values={"reason": reason})


def find_unreadable_images(survey: Survey) -> Findings:
    for record, error in survey.unreadable:
        code = Code.UNREACHABLE_IMAGE if isinstance(error, ImageUnreachable) else Code.UNREADABLE_IMAGE
        yield Finding(code, [record.name], {"reason": error.reason})


def find_split_problems(survey: Survey) -> Findings:
    """Finds missing training images, a single class, and classes that are not in every split."""
    if survey.training is None:
        yield Finding(Code.NO_TRAINING_IMAGES, values={"splits": list(survey.source.splits)})
        return
    if len(survey.class_counts) == 1 and survey.source.task != REGRESSION:
        yield Finding(Code.SINGLE_CLASS, values={"name": next(iter(survey.class_counts))})
    classes = set(survey.class_counts)
    for split, listing in survey.source.splits.items():
        labels = set(listing.labels.counts())
        if unknown := sorted(labels - classes):
            yield Finding(Code.UNKNOWN_CLASSES, values={"split": split, "classes": unknown})
        if missing := sorted(classes - labels):
            yield Finding(Code.MISSING_CLASSES, values={"split": split, "classes": missing})


def find_class_sizes(survey: Survey) -> Findings:
    """Finds small classes, imbalance, and a data set that is smaller than a batch."""
    counts = survey.class_counts
    small = [f"{name} ({n})" for name, n in sorted(counts.items()) if n < MIN_CLASS_IMAGES]
    if small:
        yield Finding(Code.SMALL_CLASSES, values={"limit": MIN_CLASS_IMAGES, "classes": small})
    if counts and max(counts.values()) > MAX_IMBALANCE * min(counts.values()):
        largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        values = {"largest": largest, "n_largest": counts[largest]}
        values |= {"smallest": smallest, "n_smallest": counts[smallest]}
        values |= {"ratio": counts[largest] / counts[smallest], "share": counts[largest] / counts.total()}
        yield Finding(Code.CLASS_IMBALANCE, values=values)
    batch_size = survey.batch_size or DEFAULT_BATCH_SIZE
    images = len(survey.training) if survey.training else 0
    if 0 < images < batch_size:
        yield Finding(Code.FEWER_THAN_A_BATCH, values={"images": images, "batch_size": batch_size})


def find_similar_class_names(survey: Survey) -> Findings:
    """Finds classes whose names differ only in case, accents, spaces or punctuation."""
    similar = defaultdict(list)
    for name in sorted({label for listing in survey.source.splits.values() for label in listing.labels.counts()}):
        key = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if c.isalnum())
        similar[key or name].append(name)
    for names in similar.values():
        if len(names) > 1:
            yield Finding(Code.SIMILAR_CLASS_NAMES, values={"classes": names})


def find_several_labels(survey: Survey) -> Findings:
    """Finds labels such as "ants|insect", which are the names of several classes in some tables."""
    if survey.source.task in (MULTI_LABEL, REGRESSION):
        return
    labels = sorted({label for listing in survey.source.splits.values() for label in listing.labels.categories})
    several = [label for label in labels if any(separator in label for separator in LABEL_SEPARATORS)]
    if several:
        yield Finding(Code.SEVERAL_LABELS, values={"n": len(several), "example_label": several[0]})


def find_label_sets(survey: Survey) -> Findings:
    """Finds images without any label, labels that always come together, and labels that every training image has."""
    if survey.source.task != MULTI_LABEL:
        return
    empty = [record.name for record, _ in survey.images if record.label == NO_LABEL]
    if empty:
        yield Finding(Code.WITHOUT_LABELS, empty)
    if survey.training is None or not isinstance(survey.training.labels, LabelSets):
        return
    sets_with: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for names in survey.training.labels.used_sets():
        for name in names:
            sets_with[name].add(names)
    together: dict[frozenset[tuple[str, ...]], list[str]] = defaultdict(list)
    for name in sorted(sets_with):
        together[frozenset(sets_with[name])].append(name)
    for group in together.values():
        if len(group) > 1:
            yield Finding(Code.ALWAYS_TOGETHER, values={"classes": group, "n": survey.class_counts[group[0]]})
    for name, images in sorted(survey.class_counts.items()):
        if images == len(survey.training):
            yield Finding(Code.LABEL_EVERYWHERE, values={"name": name})


def find_numbers(survey: Survey) -> Findings:
    """Finds numbers that are the same in all training images, and numbers far from all others, such as -999."""
    if survey.training is None or not isinstance(survey.training.labels, Numbers):
        return
    names = survey.training.labels.names
    for name, column in zip(names, survey.training.labels.encode(names).T, strict=True):
        if (column == column[0]).all():
            yield Finding(Code.CONSTANT_NUMBER, values={"name": name, "number": f"{column[0]:g}"})
            continue
        low, median, high = np.quantile(column, (0.25, 0.5, 0.75))
        far = np.flatnonzero((np.abs(column - median) > FAR_RANGES * (high - low)) & (high > low)).tolist()
        if far:
            images = [survey.training.names[i] for i in far]
            values = {"name": name, "number": f"{column[far[0]]:g}", "low": f"{low:g}", "high": f"{high:g}"}
            yield Finding(Code.FAR_NUMBERS, images, values)


def find_left_out(survey: Survey) -> Findings:
    for left_out in survey.source.left_out:
        yield Finding(Code.IGNORED, values={"reason": left_out.sentence, "files": left_out.files})


def find_wrong_extensions(survey: Survey) -> Findings:
    wrong = [
        (record, facts)
        for record, facts in survey.readable
        if (usual := EXTENSIONS_OF_FORMAT.get("JPEG" if facts.format == "MPO" else facts.format))
        and Path(record.name).suffix.lower() not in ("", *usual)
    ]
    if wrong:
        yield Finding(Code.WRONG_EXTENSION, names_of(wrong), {"format": wrong[0][1].format})


def find_repeated_rows(survey: Survey) -> Findings:
    """Finds files, or images of the same files, that a table lists more than once."""
    rows: dict[tuple[Path, ...], list[ImageRecord]] = defaultdict(list)
    for record, _ in survey.images:
        if files := survey.files(record):
            rows[files].append(record)
    repeated = [records for records in rows.values() if len(records) > 1]
    if repeated:
        conflicts = sum(map(have_conflicting_labels, repeated))
        yield Finding(Code.LISTED_TWICE, [records[0].name for records in repeated], {"conflicts": conflicts})


def find_duplicates(survey: Survey) -> Findings:
    """Finds identical images in different classes, in different splits, and within a split."""
    for code, is_concerned in (
        (Code.DUPLICATES_ACROSS_CLASSES, have_conflicting_labels),
        (Code.DUPLICATES_ACROSS_SPLITS, are_across_splits),
        (Code.DUPLICATES, are_within_split),
    ):
        yield from report_groups(code, [group for group in survey.duplicates if is_concerned(group)])


def find_near_duplicates(survey: Survey) -> Findings:
    """Finds the same picture again, re-encoded, resized or slightly changed."""
    pairs = [[a, b] for a, b, _ in survey.near_duplicates]
    pairs_per_image = Counter(record for pair in pairs for record in pair)
    is_lower_bound = max(pairs_per_image.values(), default=0) >= MAX_PAIRS
    for code, is_concerned in (
        # numbers of similar images may differ a little
        *([] if survey.source.task == REGRESSION else [(Code.NEAR_DUPLICATES_ACROSS_CLASSES, have_conflicting_labels)]),
        (Code.NEAR_DUPLICATES_ACROSS_SPLITS, are_across_splits),
        (Code.NEAR_DUPLICATES, are_within_split),
    ):
        concerned = [pair for pair in pairs if is_concerned(pair)]
        yield from report_groups(code, concerned, is_lower_bound, is_divided_at_random(survey, concerned))


def is_divided_at_random(survey: Survey, pairs: list[list[ImageRecord]]) -> bool:
    """Returns whether a random split of the source could separate the images of one of these pairs."""
    groups = survey.source.splits["all"].groups if "all" in survey.source.splits else ()
    if groups is None:
        return True
    return len(groups) > 0 and any(groups[a.index] != groups[b.index] for a, b in pairs)


def report_groups(
    code: Code, groups: list[list[ImageRecord]], is_lower_bound: bool = False, is_divided: bool = False
) -> Findings:
    """Yields the finding about these groups of duplicates, if there are any."""
    if groups:
        names = [[record.name for record in group] for group in groups]
        values = {"n": len(groups), "is_lower_bound": is_lower_bound, "is_divided_at_random": is_divided}
        yield Finding(code, [name for group in names for name in group], values, groups=names)


def are_within_split(records: list[ImageRecord]) -> bool:
    return not are_across_splits(records)


def find_color_types(survey: Survey) -> Findings:
    """Finds gray beside color images, more than 8 bits, and transparency."""
    color_types = Counter(facts.color_type for _, facts in survey.readable)
    if "gray" in color_types and len(color_types) > 1:
        values = {"n_gray": color_types["gray"], "n_images": len(survey.readable)}
        yield Finding(Code.MIXED_COLOR, values=values)
    yield from report_images(Code.HIGH_BIT_DEPTH, survey, lambda facts: facts.color_type == GRAY_16_BIT)
    yield from report_images(Code.TRANSPARENT, survey, lambda facts: facts.is_transparent)


def find_rotations_and_animations(survey: Survey) -> Findings:
    yield from report_images(Code.ROTATED, survey, lambda facts: facts.is_rotated)
    yield from report_images(Code.ANIMATED, survey, lambda facts: facts.is_animated)


def find_unusual_sizes(survey: Survey) -> Findings:
    """Finds very small, very large and elongated images, and what a crop would remove."""
    if not survey.readable:
        return
    shapes = np.array([(facts.height, facts.width) for _, facts in survey.readable])
    short, long = shapes.min(axis=1), shapes.max(axis=1)
    for code, mask in (
        (Code.SMALL_IMAGES, short * SMALL_FACTOR < np.median(short)),
        (Code.LARGE_IMAGES, shapes.prod(axis=1) > LARGE_PIXELS),
        (Code.ELONGATED_IMAGES, long > MAX_ASPECT_RATIO * short),
    ):
        images = [survey.readable[i] for i in np.flatnonzero(mask)]
        if images:
            _, facts = images[0]
            values = {"width": facts.width, "height": facts.height, "ratio": MAX_ASPECT_RATIO, "fit": survey.fit}
            yield Finding(code, names_of(images), values)
    loss = 1 - short / long
    if survey.fit == "crop" and loss.max() > MAX_CROP_LOSS:
        record, _ = survey.readable[int(loss.argmax())]
        values = {"mean_loss": float(loss.mean()), "max_loss": float(loss.max())}
        yield Finding(Code.CROP_LOSS, [record.name], values)


def find_constant_images(survey: Survey) -> Findings:
    yield from report_images(Code.CONSTANT_IMAGES, survey, lambda facts: facts.is_constant)


def report_images(code: Code, survey: Survey, is_concerned: Callable[[ImageFacts], bool]) -> Findings:
    """Yields the finding about the images with such facts, if there are any."""
    images = [(record, facts) for record, facts in survey.readable if is_concerned(facts)]
    if images:
        yield Finding(code, names_of(images))


def names_of(images: list[Image]) -> list[str]:
    return [record.name for record, _ in images]


def find_groups(survey: Survey) -> Findings:
    """Finds groups that are in several splits, and groups that names give away."""
    crossing = find_crossing_groups(survey.source)
    if crossing:
        group, splits = next(iter(crossing.items()))
        total = len({group for listing in survey.source.splits.values() for group in set(listing.groups or ())})
        paths = [record.name for record, _ in survey.images if group_of(survey, record) in crossing]
        values = {"n": len(crossing), "total": total, "group": group, "splits": splits}
        yield Finding(Code.GROUPS_ACROSS_SPLITS, paths, values)
    if suggested := suggest_groups(survey.source):
        values = {
            "pattern": suggested.pattern,
            "groups": suggested.groups,
            "group": suggested.example,
            "names": list(suggested.names),
            "crossing_groups": count_crossing(survey.source, suggested.pattern),
            "is_divided_at_random": "all" in survey.source.splits,
        }
        yield Finding(Code.SUGGESTED_GROUPS, list(suggested.names), values)


def group_of(survey: Survey, record: ImageRecord) -> str | None:
    groups = survey.source.splits[record.split].groups
    return None if groups is None else groups[record.index]


FINDERS: tuple[Callable[[Survey], Findings], ...] = (
    find_damage,
    find_unreadable_images,
    find_split_problems,
    find_class_sizes,
    find_similar_class_names,
    find_several_labels,
    find_label_sets,
    find_numbers,
    find_left_out,
    find_wrong_extensions,
    find_repeated_rows,
    find_duplicates,
    find_near_duplicates,
    find_groups,
    find_color_types,
    find_rotations_and_animations,
    find_unusual_sizes,
    find_constant_images,
)
