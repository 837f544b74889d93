"""The folder that predictions are written into: the plan, the parts, and which of them are done.

    part-000000.parquet ...      the rows, in the order of the listing
    _summary.json                totals, once all parts are done
    _vitrail/plan.json           the options that decide the rows; written once
    _vitrail/part-000000.json    the manifest of a part that is done: its rows, bytes and SHA-256
    _vitrail/listing-...         the images to predict, until all parts are done

Readers of parquet folders skip names that begin with an underscore.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.files import create_json, describe_write_error, remove_folder, write_atomically, write_json
from vitrail.prediction.listing import ListingFile, Part

try:
    import fcntl
except ImportError:  # Windows: two commands at once do the same work twice, with the same result
    fcntl = None  # type: ignore[assignment]

PLAN_VERSION = 2
MAX_EXAMPLES = 3  # unreadable images that a manifest names


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the results. A resumed run must have the same plan."""

    model: str  # digest of the weights and everything else that decides the output
    images: int
    fingerprint: str  # of the images' paths, sizes and times
    part_images: int
    format: str
    top: int
    embedding: bool
    precision: str

    def differences(self, other: "Plan") -> list[str]:
        """Describes how another plan differs from this one."""
        texts = []
        if self.model != other.model:
            texts.append("the model is another")
        if self.images != other.images:
            texts.append(f"there are {other.images:,} images, before {self.images:,}")
        elif self.fingerprint != other.fingerprint:
            texts.append("some images have another path, size or time")
        for name in ("part_images", "format", "top", "embedding", "precision"):
            before, now = getattr(self, name), getattr(other, name)
            if before != now:
                texts.append(f"{name.replace('_', '-')} is {now}, before {before}")
        return texts

    def to_json(self) -> dict[str, Any]:
        return {"version": PLAN_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Plan":
        """Raises `ValueError`, `TypeError` or `KeyError` for a document that is not a plan."""
        return cls(**upgrade_plan(document))


def upgrade_plan(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a plan; version 1 had `fast` in place of `precision`, and no version."""
    values = dict(document)
    version = values.pop("version", 1)
    if version not in (1, PLAN_VERSION):
        raise ValueError(f"version {version} is not known")
    if version == 1:
        values["precision"] = "bf16" if values.pop("fast") else "fp32"
    return values


@dataclass(frozen=True)
class PartManifest:
    """What a finished part contains."""

    part: int
    rows: int
    unreadable: int
    bytes: int
    sha256: str
    labels: dict[str, int]  # images per predicted class
    examples: list[list[str]]  # some of the unreadable images: path, error
    over_8_bits: int = 0  # images in 16 bits or floats; a manifest of an earlier version does not count them
    over_8_bits_example: str | None = None  # the path of the first


def part_manifest(
    part: int,
    content: bytes,
    labels: dict[str, int],
    errors: Sequence[tuple[str, str]],
    over_8_bits: Sequence[str],
    rows: int,
) -> PartManifest:
    """Describes a part; `errors` are (path, error) of its unreadable images."""
    examples = [list(each) for each in errors[:MAX_EXAMPLES]]
    digest = hashlib.sha256(content).hexdigest()
    first = over_8_bits[0] if over_8_bits else None
    return PartManifest(part, rows, len(errors), len(content), digest, labels, examples, len(over_8_bits), first)


@dataclass(frozen=True)
class PredictionFolder:
    """A folder of parts."""

    path: Path

    @property
    def metadata(self) -> Path:
        return self.path / "_vitrail"

    def rows_path(self, part: int, format: str) -> Path:
        return self.path / f"part-{part:06}.{format}"

    def manifest_path(self, part: int) -> Path:
        return self.metadata / f"part-{part:06}.json"

    def create(self) -> None:
        """Makes the folder; raises `UsageError` if it holds anything but predictions."""
        try:
            if self.path.exists() and not self.metadata.is_dir() and any(self.path.iterdir()):
                raise UsageError(f"{self.path} has other files in it", "choose another --out")
            self.metadata.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a folder", "choose another --out") from None
        except OSError as error:
            raise VitrailError(f"{self.path} cannot be written: {error.strerror}", "choose another --out") from None

    def read_plan(self) -> Plan | None:
        """Returns the plan, None before there is one; raises `VitrailError` if it is damaged."""
        path = self.metadata / "plan.json"
        try:
            return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise VitrailError(f"{path} cannot be read", "choose another --out") from None

    def claim(self, plan: Plan) -> None:
        """Writes the plan if there is none yet; raises `UsageError` if there is another one.

        Several machines may claim a folder at once: the first one wins, and all of them read the winner's plan.
        """
        if self.read_plan() is None:
            try:
                create_json(self.metadata / "plan.json", plan.to_json())
            except FileExistsError:
                pass
            except OSError as error:
                reason = describe_write_error(error)
                raise VitrailError(f"{self.metadata} cannot be written: {reason}", "choose another --out") from None
        if (existing := self.read_plan()) is not None and (differences := existing.differences(plan)):
            raise UsageError(
                f"{self.path} has predictions with other options: {'; '.join(differences)}",
                "use the same options, or choose another --out",
            )

    def store_listing(self, listing: ListingFile) -> ListingFile:
        """Moves the listing into the folder, under a name that every process of this job derives from it."""
        path = self.metadata / f"listing-{listing.fingerprint[:16]}"
        os.replace(listing.file, path)
        return replace(listing, file=path)

    def write_part(self, manifest: PartManifest, content: bytes, format: str) -> None:
        """Writes a part's rows, then its manifest; raises `VitrailError` if they cannot be written."""
        write_atomically(self.rows_path(manifest.part, format), lambda path: path.write_bytes(content))
        write_json(self.manifest_path(manifest.part), asdict(manifest))

    def read_manifest(self, part: Part, format: str) -> PartManifest | None:
        """Returns the manifest of a part whose rows are on disk in full, else None."""
        try:
            manifest = PartManifest(**json.loads(self.manifest_path(part.number).read_text(encoding="utf-8")))
            size = self.rows_path(part.number, format).stat().st_size
        except (OSError, ValueError, TypeError):
            return None
        return manifest if manifest.rows == part.images and manifest.bytes == size else None

    def remove_temporary_files(self) -> None:
        """Removes the listing and what killed processes have left."""
        for path in (*self.metadata.glob("listing-*"), *self.path.glob(".part-*")):
            path.unlink(missing_ok=True)
        for path in self.metadata.glob(".*"):
            remove_folder(path)
            if path.is_file():
                path.unlink()

    @contextmanager
    def lock(self, slice: tuple[int, int], resume: bool) -> Iterator[None]:
        """Locks one slice of the parts; the lock ends with the process, however that ends.

        Raises `UsageError` if another process holds it, or if the slice was started before and `resume` is false.
        """
        path = self.metadata / f"slice-{slice[0]}-of-{slice[1]}"
        work = str(self.path) if slice == (1, 1) else f"slice {slice[0]}/{slice[1]} of {self.path}"
        if path.exists() and self.read_plan() and not resume:
            raise UsageError(f"{work} already has predictions", "continue with --resume, or choose another --out")
        try:
            file = path.open("w")
        except OSError as error:
            raise VitrailError(f"{self.metadata} cannot be written: {error.strerror}", "choose another --out") from None
        with file:
            try:
                if fcntl is not None:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another process is predicting into {work}", "wait for it, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
