"""The folder that predictions are written into: what was asked for, and which parts of it are done.

    part-000000.parquet ...      the rows, in the order of the listing
    _summary.json                how many, and of which class, once all parts are there
    _vitrail/plan.json           what was asked for; nothing else is ever added to it
    _vitrail/part-000000.json    a part that is done: its rows, bytes and SHA-256
    _vitrail/listing-...         the images by part, while the work is under way

Names that begin with an underscore are passed over by whatever reads a folder of parquet files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from vitrail.errors import UsageError, VitrailError
from vitrail.files import fsync, remove_folder, write_atomically, write_json
from vitrail.prediction.listing import ListingFile, Part

try:
    import fcntl
except ImportError:  # Windows: two commands at once would do the same work twice, to the same end
    fcntl = None  # type: ignore[assignment]

EXAMPLES = 3  # images that a part names among those that could not be read


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the results; whoever goes on must want the same."""

    model: str  # a digest of the weights and of all that goes with them
    images: int
    fingerprint: str  # of the images' paths, sizes and times
    part_images: int
    format: str
    top: int
    embedding: bool
    fast: bool

    def differences(self, other: "Plan") -> list[str]:
        """What another plan has otherwise, in words."""
        said = []
        if self.model != other.model:
            said.append("the model is another")
        if self.images != other.images:
            said.append(f"there are {other.images:,} images, and were {self.images:,}")
        elif self.fingerprint != other.fingerprint:
            said.append("some images have another path, size or time")
        for name in ("part_images", "format", "top", "embedding", "fast"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                said.append(f"{name.replace('_', '-')} is {theirs}, and was {mine}")
        return said


@dataclass(frozen=True)
class PartManifest:
    """A part that is written."""

    part: int
    rows: int
    unreadable: int
    bytes: int
    sha256: str
    labels: dict[str, int]  # how many images of each class it found
    examples: list[list[str]]  # some that could not be read, with the reason


@dataclass(frozen=True)
class PredictionFolder:
    """A folder of parts."""

    path: Path

    @property
    def metadata(self) -> Path:
        """Where the notes lie."""
        return self.path / "_vitrail"

    def rows_path(self, part: int, format: str) -> Path:
        """The file with a part's rows."""
        return self.path / f"part-{part:06}.{format}"

    def manifest_path(self, part: int) -> Path:
        """The file that says that a part is done."""
        return self.metadata / f"part-{part:06}.json"

    def create(self) -> None:
        """The folder, which must be empty or hold predictions; raises `UsageError` where it holds something else."""
        try:
            if self.path.exists() and not self.metadata.is_dir() and any(self.path.iterdir()):
                raise UsageError(f"{self.path} has other files in it", "choose another --out")
            self.metadata.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path} is not a folder", "choose another --out") from None
        except OSError as error:
            raise VitrailError(f"{self.path} cannot be written: {error.strerror}", "choose another --out") from None

    def read_plan(self) -> Plan | None:
        """What was asked for, if anything was; raises `VitrailError` for a note that cannot be read."""
        try:
            return Plan(**json.loads((self.metadata / "plan.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise VitrailError(f"{self.metadata / 'plan.json'} cannot be read", "choose another --out") from None

    def claim(self, plan: Plan) -> None:
        """Takes the folder for this plan; raises `UsageError` where it is taken for another."""
        if self.read_plan() is None:
            aside = self.metadata / f".plan-{uuid4().hex}.json"  # processes of two containers may have one number
            write_json(aside, asdict(plan))
            try:
                os.link(aside, self.metadata / "plan.json")
            except FileExistsError:  # another machine was quicker
                pass
            except OSError:  # a file system without links
                os.rename(aside, self.metadata / "plan.json")
            finally:
                aside.unlink(missing_ok=True)
            fsync(self.metadata)
        if (before := self.read_plan()) is not None and (said := before.differences(plan)):
            raise UsageError(
                f"{self.path} has predictions that were asked for otherwise: {'; '.join(said)}",
                "ask as before, or choose another --out",
            )

    def store_listing(self, listing: ListingFile) -> ListingFile:
        """The listing under a name that every process of this work knows."""
        place = self.metadata / f"listing-{listing.fingerprint[:16]}"
        os.replace(listing.file, place)
        return replace(listing, file=place)

    def write_part(self, done: PartManifest, content: bytes, format: str) -> None:
        """A part's rows, then the note that they are there; raises `VitrailError` where they cannot be written."""
        write_atomically(self.rows_path(done.part, format), lambda aside: aside.write_bytes(content))
        write_json(self.manifest_path(done.part), asdict(done))

    def read_manifest(self, piece: Part, format: str) -> PartManifest | None:
        """The note of a part that is there with all its rows and bytes."""
        try:
            done = PartManifest(**json.loads(self.manifest_path(piece.number).read_text(encoding="utf-8")))
            size = self.rows_path(piece.number, format).stat().st_size
        except (OSError, ValueError, TypeError):
            return None
        return done if done.rows == piece.images and done.bytes == size else None

    def remove_temporary_files(self) -> None:
        """Takes away what only work under way needs, and what killed processes left."""
        for left in (*self.metadata.glob("listing-*"), *self.path.glob(".part-*")):
            left.unlink(missing_ok=True)
        for left in self.metadata.glob(".*"):
            remove_folder(left)
            if left.is_file():
                left.unlink()

    @contextmanager
    def lock(self, share: tuple[int, int], resume: bool) -> Iterator[None]:
        """The right to work on a share of the parts; raises `UsageError` where it was begun before, or is being done.

        The lock goes with the process that holds it, however that ends.
        """
        path = self.metadata / f"slice-{share[0]}-of-{share[1]}"
        what = str(self.path) if share == (1, 1) else f"slice {share[0]}/{share[1]} of {self.path}"
        if path.exists() and self.read_plan() and not resume:
            raise UsageError(f"{what} has predictions already", "--resume goes on with them, or choose another --out")
        try:
            lock = path.open("w")
        except OSError as error:
            raise VitrailError(f"{self.metadata} cannot be written: {error.strerror}", "choose another --out") from None
        with lock:
            try:
                if fcntl is not None:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another process is at work on {what}", "wait for it, or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield


def part_manifest(
    part: int, content: bytes, labels: dict[str, int], errors: list[tuple[str, str]], rows: int
) -> PartManifest:
    """The note for a part with this content."""
    examples = [list(each) for each in errors[:EXAMPLES]]
    return PartManifest(part, rows, len(errors), len(content), hashlib.sha256(content).hexdigest(), labels, examples)
