"""A look at the data before anyone trains on it: findings, each with what will be done about it."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrail.data.decode import GRAY_16_BIT, ImageError
from vitrail.data.encoded import ImageFiles
from vitrail.data.facts import FactsCache, FactsOrError, ImageFacts
from vitrail.data.near_duplicates import MAX_PAIRS
from vitrail.data.open import open_source
from vitrail.data.source import Listing, Source
from vitrail.errors import UsageError, VitrailError

TINY_CLASS = 10  # images; below it neither training nor a test score says much
TOO_SMALL = 4  # times smaller than the median side
TOO_LARGE = 25_000_000  # pixels; above it decoding alone costs more than training
TOO_LONG = 3  # times as long as wide
IMBALANCE = 10  # largest class over smallest
CUT = 0.3  # part of an image that a crop may take from it before it is said
SMALLEST_BATCH = 16  # what a recipe takes by itself where images are few
NAMED = 3  # examples in a sentence; the report has them all

UNREADABLE = "unreadable"  # the kind of finding that a run may go on without

EXTENSIONS_OF = {
    "JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "MPO": (".jpg", ".jpeg", ".jfif"),
}  # fmt: skip


@dataclass(frozen=True)
class ImageRecord:
    """An image: its split, its number in the split, its name and class."""

    split: str
    index: int
    name: str
    label: str


@dataclass(frozen=True)
class Finding:
    """Something that was found, and what will be done about it. Errors stop training, warnings do not."""

    level: Literal["error", "warning"]
    kind: str
    sentence: str
    then: str
    files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.sentence}; {self.then}"


@dataclass
class CheckReport:
    """What was found: errors stop training, warnings do not."""

    data: str
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # images per class over all splits
    splits: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)  # smallest, median, largest of height and width
    color_types: dict[str, int] = field(default_factory=dict)  # images per kind: colour, grey, palette, ...
    findings: list[Finding] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[list[dict[str, Any]]] = field(default_factory=list)  # groups of the very same image
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)  # pairs
    survey: "Survey | None" = None  # what it was made from; not part of the JSON

    @property
    def errors(self) -> list[str]:
        """What stops training, in sentences."""
        return [str(finding) for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[str]:
        """What does not, in sentences."""
        return [str(finding) for finding in self.findings if finding.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        document = {name: value for name, value in vars(self).items() if name not in ("survey", "findings")}
        findings = [asdict(finding) for finding in self.findings]
        return {**document, "errors": self.errors, "warnings": self.warnings, "findings": findings}


@dataclass
class Survey:
    """What lies at an address with a look at every image, and how training will use it."""

    source: Source
    facts: dict[str, list[FactsOrError]]
    pairs: Callable[[list[bytes], list[str]], list[tuple[int, int, float]]]
    batch: int | None = None
    fit: str = "pad"

    @cached_property
    def training(self) -> Listing | None:
        """The listing that training takes."""
        return self.source.splits.get("train", self.source.splits.get("all"))

    @cached_property
    def counts(self) -> Counter[str]:
        """Training images per class."""
        return Counter(self.training.labels if self.training else ())

    @cached_property
    def readable(self) -> list[tuple[ImageRecord, ImageFacts]]:
        """Every image that can be read."""
        return [(place, look) for place, look in self.images if isinstance(look, ImageFacts)]

    @cached_property
    def images(self) -> list[tuple[ImageRecord, FactsOrError]]:
        """Every image that is listed."""
        return [
            (ImageRecord(split, i, listing.names[i], listing.labels[i]), look)
            for split, listing in self.source.splits.items()
            for i, look in enumerate(self.facts[split])
        ]

    @cached_property
    def unreadable(self) -> list[ImageRecord]:
        """Every image that is listed and cannot be read."""
        return [place for place, look in self.images if isinstance(look, ImageError)]

    @cached_property
    def duplicates(self) -> list[list[ImageRecord]]:
        """Groups of the very same image."""
        groups: dict[bytes, list[ImageRecord]] = defaultdict(list)
        for place, look in self.readable:
            groups[look.digest].append(place)
        return [group for group in groups.values() if len(group) > 1]

    @cached_property
    def near_duplicates(self) -> list[tuple[ImageRecord, ImageRecord, float]]:
        """Pairs of images that are copies though their files differ.

        Of the very same image the first of each split and class is paired.
        """
        twins: dict[bytes, dict[tuple[str, str], ImageRecord]] = defaultdict(dict)
        signatures: dict[bytes, bytes] = {}
        for place, look in self.readable:
            if look.signature:
                twins[look.digest].setdefault((place.split, place.label), place)
                signatures[look.digest] = look.signature
        listed = [list(places.values()) for places in twins.values()]
        splits = [" ".join(sorted({place.split for place in places})) for places in listed]
        found = self.pairs(list(signatures.values()), splits)
        return [(a, b, likeness) for i, j, likeness in found for a in listed[i] for b in listed[j]]

    def path(self, place: ImageRecord) -> Path | None:
        """The file of an image; None where it has none of its own."""
        pixels = self.source.splits[place.split].pixels
        return pixels.paths[place.index] if isinstance(pixels, ImageFiles) else None


def check_data(
    address: str | Path,
    tick: Callable[[int, int], object] = lambda done, total: None,
    *,
    batch_size: int | None = None,
    fit: str = "pad",
    fresh: bool = False,
) -> CheckReport:
    """Reads every image at an address and reports what would hurt training or its score.

    `batch` and `fit` are the recipe's. What has not changed since an earlier check is not read again, unless `fresh`.
    `tick` is called with (done, total). Raises `UsageError` where nothing lies at the address; everything else is in
    the report.
    """
    report = CheckReport(str(address))
    try:
        found = open_source(address, missing_ok=True)
    except UsageError:
        raise
    except VitrailError as error:
        report.findings.append(Finding("error", "layout", error.sentence, error.hint or "training stops"))
        return report
    report.splits = {split: len(listing) for split, listing in found.splits.items()}
    report.images = sum(report.splits.values())
    report.classes = dict(sorted(Counter(c for listing in found.splits.values() for c in listing.labels).items()))
    looks = FactsCache(fresh)
    done = iter(range(1, report.images + 1))
    seen = {
        split: looks.of(listing, f"{found.name}:{split}", lambda: tick(next(done), report.images))
        for split, listing in found.splits.items()
    }
    survey = report.survey = Survey(found, seen, looks.pairs, batch_size, fit)
    for finder in FINDERS:
        report.findings += finder(survey)
    report.unreadable = [place.name for place in survey.unreadable]
    report.color_types = dict(Counter(look.color_type for _, look in survey.readable).most_common())
    report.duplicates = [[asdict(place) for place in group] for group in survey.duplicates]
    report.near_duplicates = [
        {"a": asdict(a), "b": asdict(b), "likeness": round(likeness, 4)} for a, b, likeness in survey.near_duplicates
    ]
    if survey.readable:
        shapes = np.array([(look.height, look.width) for _, look in survey.readable])
        for side, values in zip(("height", "width"), shapes.T, strict=True):
            report.sizes[side] = [int(values.min()), int(np.median(values)), int(values.max())]
    return report


def unreadable(survey: Survey) -> Iterator[Finding]:
    """Files that no decoder takes, one finding each."""
    for place, look in survey.images:
        if isinstance(look, ImageError):
            then = "training stops, or goes on without it with --skip-unreadable"
            yield Finding("error", UNREADABLE, f"{place.name}: {look.reason}", then, [place.name])


def lost(survey: Survey) -> Iterator[Finding]:
    """What cannot even be listed: images behind a tear in a shard."""
    for sentence in survey.source.damaged:
        yield Finding("error", UNREADABLE, sentence, "training stops, or goes on without with --skip-unreadable")


def classes_of_splits(survey: Survey) -> Iterator[Finding]:
    """No training images, one class only, classes that are not in every split."""
    if survey.training is None:
        splits = " and ".join(survey.source.splits)
        yield Finding("error", "no training images", f"there are {splits} but no training images", "training stops")
        return
    if len(survey.counts) == 1:
        only = next(iter(survey.counts))
        yield Finding("error", "one class", f"there is only the class {only!r}; two are needed", "training stops")
    for split, listing in survey.source.splits.items():
        strangers = sorted(set(listing.labels) - set(survey.counts))
        missing = sorted(set(survey.counts) - set(listing.labels))
        if strangers:
            said = f"{split} has classes that training lacks: {', '.join(strangers)}"
            yield Finding("error", "unknown classes", said, "training stops; add training images or take them out")
        if missing:
            said = f"{split} has no image of {', '.join(missing)}"
            yield Finding("warning", "missing classes", said, "the classes keep their numbers and are not scored there")


def class_sizes(survey: Survey) -> Iterator[Finding]:
    """Classes with few images, and with many more than others; fewer images than a batch."""
    counts = survey.counts
    tiny = [f"{name} ({n})" for name, n in sorted(counts.items()) if n < TINY_CLASS]
    if tiny:
        said = f"fewer than {TINY_CLASS} training images: {', '.join(tiny)}"
        yield Finding("warning", "tiny classes", said, "they are trained on as they are, and their scores say little")
    if counts and max(counts.values()) > IMBALANCE * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        said = f"{most!r} has {counts[most]} training images, {least!r} only {counts[least]}"
        yield Finding("warning", "imbalance", said, "nothing is weighted: look at the scores of each class")
    batch = survey.batch or SMALLEST_BATCH
    if 0 < sum(counts.values()) < batch:
        said = f"{sum(counts.values())} training images are fewer than a batch of {batch}"
        yield Finding("warning", "fewer than a batch", said, "each epoch is one step with all of them")


def alike_names(survey: Survey) -> Iterator[Finding]:
    """Classes whose names differ in case, accents, spaces or punctuation only."""
    alike = defaultdict(list)
    for name in sorted({label for listing in survey.source.splits.values() for label in listing.labels}):
        plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if c.isalnum())
        alike[plain or name].append(name)
    for names in alike.values():
        if len(names) > 1:
            said = f"the classes {' and '.join(map(repr, names))} differ in case, accents, spaces or punctuation only"
            yield Finding("warning", "alike names", said, "they stay classes of their own: rename one to join them")


def strange_notes(survey: Survey) -> Iterator[Finding]:
    """What lies at the address and belongs to no class."""
    for note in survey.source.notes:
        if "left out" in note or "takes in" in note:
            yield Finding("warning", "left out", note, "nothing is done with them")


def extensions(survey: Survey) -> Iterator[Finding]:
    """Files whose name says another format than their content."""
    wrong = [
        (place, look)
        for place, look in survey.readable
        if look.format in EXTENSIONS_OF and Path(place.name).suffix.lower() not in ("", *EXTENSIONS_OF[look.format])
    ]
    if wrong:
        place, look = wrong[0]
        said = f"{count(wrong)} named after another format, for instance {place.name}, which is a {look.format}"
        yield Finding("warning", "extension", said, "they are read as what they are", names(wrong))


def listed_twice(survey: Survey) -> Iterator[Finding]:
    """Files that a table lists more than once."""
    rows: dict[Path, list[ImageRecord]] = defaultdict(list)
    for place, _ in survey.images:
        if (path := survey.path(place)) is not None:
            rows[path].append(place)
    twice = [places for places in rows.values() if len(places) > 1]
    if twice:
        torn = sum(len({place.label for place in places}) > 1 for places in twice)
        said = f"{count(twice)} listed more than once, for instance {twice[0][0].name}"
        said += f"; {torn} of them under different classes" if torn else ""
        yield Finding("warning", "listed twice", said, "each row counts; --fix keeps one", [p[0].name for p in twice])


def exact_copies(survey: Survey) -> Iterator[Finding]:
    """The very same image more than once: under different classes, in different splits, in one."""
    kinds: tuple[tuple[str, Callable[[list[ImageRecord]], bool], str], ...] = (
        ("the same image under different classes", torn, "both labels are trained on; --fix leaves all of them out"),
        ("the same image in different splits", apart, "the score flatters; --fix leaves the training copy out"),
        ("the same image more than once", together, "it counts more than others; --fix keeps one"),
    )
    for kind, differ, then in kinds:
        hit = [group for group in survey.duplicates if differ(group)]
        if hit:
            example = " = ".join(place.name for place in hit[0][:NAMED])
            said = f"{kind}, {times(hit)}, for instance {example}"
            yield Finding("warning", kind, said, then, [place.name for group in hit for place in group])


def near_copies(survey: Survey) -> Iterator[Finding]:
    """The same picture again, re-encoded, resized or slightly changed."""
    kinds: tuple[tuple[str, Callable[[list[ImageRecord]], bool], str], ...] = (
        ("nearly the same image under different classes", torn, "both are trained on as labelled"),
        ("nearly the same image in different splits", apart, "the score flatters; --fix leaves the training copy out"),
        ("nearly the same image more than once", together, "all are kept"),
    )
    pairs_of = Counter(place for a, b, _ in survey.near_duplicates for place in (a, b))
    about = "at least " if max(pairs_of.values(), default=0) >= MAX_PAIRS else ""  # crowds are not paired in full
    for kind, differ, then in kinds:
        hit = [(a, b) for a, b, _ in survey.near_duplicates if differ([a, b])]
        if hit:
            examples = ", ".join(f"{a.name} ~ {b.name}" for a, b in hit[:NAMED])
            said = f"{kind}, {about}{times(hit)}, for instance {examples}"
            yield Finding("warning", kind, said, then, [place.name for pair in hit for place in pair])


def torn(places: list[ImageRecord]) -> bool:
    """Whether copies have different classes."""
    return len({place.label for place in places}) > 1


def apart(places: list[ImageRecord]) -> bool:
    """Whether copies lie in different splits."""
    return len({place.split for place in places}) > 1


def together(places: list[ImageRecord]) -> bool:
    """Whether copies lie in one split."""
    return not apart(places)


def mixed_kinds(survey: Survey) -> Iterator[Finding]:
    """Grey and colour side by side, 16 bits, transparency."""
    kinds = Counter(look.color_type for _, look in survey.readable)
    if "grey" in kinds and len(kinds) > 1:
        said = f"{kinds['grey']} of {len(survey.readable)} images are grey, others in colour"
        yield Finding("warning", "mixed kinds", said, "grey ones become colour images: a class may be known by it")
    if GRAY_16_BIT in kinds:
        deep = [(place, look) for place, look in survey.readable if look.color_type == GRAY_16_BIT]
        said = f"{count(deep)} in 16 bits or floats, for instance {deep[0][0].name}"
        yield Finding("warning", "16 bits", said, "their whole range is scaled to 8 bits", names(deep))
    clear = [(place, look) for place, look in survey.readable if look.is_transparent]
    if clear:
        said = f"{count(clear)} with transparency, for instance {clear[0][0].name}"
        yield Finding("warning", "transparency", said, "white shows through", names(clear))


def turned(survey: Survey) -> Iterator[Finding]:
    """Photos stored lying down, and animations."""
    lying = [(place, look) for place, look in survey.readable if look.is_rotated]
    if lying:
        said = f"{count(lying)} stored turned or mirrored, for instance {lying[0][0].name}"
        yield Finding("warning", "orientation", said, "EXIF says how, and they are put upright", names(lying))
    moving = [(place, look) for place, look in survey.readable if look.is_animated]
    if moving:
        said = f"{count(moving)} with more than one frame, for instance {moving[0][0].name}"
        yield Finding("warning", "animation", said, "the first frame is taken", names(moving))


def sizes(survey: Survey) -> Iterator[Finding]:
    """Images far smaller than the others, enormous ones, long thin ones, and what a crop would cut away."""
    if not survey.readable:
        return
    shapes = np.array([(look.height, look.width) for _, look in survey.readable])
    short = shapes.min(axis=1)
    dwarfs = [survey.readable[i] for i in np.flatnonzero(short * TOO_SMALL < np.median(short))]
    if dwarfs:
        place, look = dwarfs[0]
        said = (
            f"{count(dwarfs)} far smaller than the others, for instance {place.name} "
            f"with {look.width}x{look.height} pixels"
        )
        yield Finding("warning", "small", said, "training refuses one that is smaller than a patch", names(dwarfs))
    giants = [survey.readable[i] for i in np.flatnonzero(shapes.prod(axis=1) > TOO_LARGE)]
    if giants:
        place, look = giants[0]
        said = f"{count(giants)} enormous, for instance {place.name} with {look.width}x{look.height} pixels"
        yield Finding("warning", "large", said, "they are read all the same, slowly", names(giants))
    long = [survey.readable[i] for i in np.flatnonzero(shapes.max(axis=1) > TOO_LONG * short)]
    if long:
        place, look = long[0]
        said = (
            f"{count(long)} more than {TOO_LONG} times as long as wide, for instance {place.name} "
            f"with {look.width}x{look.height} pixels"
        )
        yield Finding("warning", "long", said, FITS[survey.fit], names(long))
    lost = 1 - short / shapes.max(axis=1)
    if survey.fit == "crop" and lost.max() > CUT:
        place, _ = survey.readable[int(lost.argmax())]
        said = f"a square crop cuts away {lost.mean():.0%} of the average image and {lost.max():.0%} of {place.name}"
        yield Finding("warning", "crop", said, "use fit pad to keep everything")


FITS = {
    "pad": "they are shrunk to fit, with a border",
    "crop": "only their middle is seen",
    "stretch": "their proportions are bent",
}


def constant(survey: Survey) -> Iterator[Finding]:
    """Images of one colour."""
    plain = [(place, look) for place, look in survey.readable if look.is_constant]
    if plain:
        said = f"{count(plain)} of one colour all over, for instance {plain[0][0].name}"
        yield Finding("warning", "constant", said, "they are trained on like the others", names(plain))


FINDERS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    lost, unreadable, classes_of_splits, class_sizes, alike_names, strange_notes, extensions, listed_twice,
    exact_copies, near_copies, mixed_kinds, turned, sizes, constant,
)  # fmt: skip


def count(things: list[Any]) -> str:
    """1 image is, 2 images are."""
    return "1 image is" if len(things) == 1 else f"{len(things)} images are"


def times(things: list[Any]) -> str:
    """1 time, 2 times."""
    return f"{len(things)} time{'s' if len(things) > 1 else ''}"


def names(images: list[tuple[ImageRecord, ImageFacts]]) -> list[str]:
    """What images are called."""
    return [place.name for place, _ in images]
