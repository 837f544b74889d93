"""Images in tar shards, read one by one in any order."""

import hashlib
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np

from vitrail.data.bands import Channels
from vitrail.data.decode import TRANSIENT_ERRNOS, ImageError, ImageUnreachable, read_size
from vitrail.data.encoded import EncodedImages
from vitrail.data.formats import BAND_EXTENSIONS
from vitrail.data.shards.cache import drop_copy, read_range
from vitrail.data.shards.index import Fault, ShardIndex
from vitrail.data.shards.storage import Shard, StorageUnreachable

HEADER_BYTES = 1 << 16  # the first bytes of an image, which usually have its size
NO_SHARD = "the shard does not exist"


@dataclass(frozen=True)
class ShardImages(EncodedImages):
    """The images in some rows of an index. What is read is checked against its SHA-256 in the index."""

    shard_index: ShardIndex
    rows: np.ndarray
    channels: Channels = 3

    def __len__(self) -> int:
        return len(self.rows)

    def location(self, i: int) -> str:
        """Returns SHARD:NAME."""
        return f"{self._shard(i).address}:{self.shard_index.names[self.rows[i]]}"

    def read_bytes(self, i: int) -> bytes:
        """Reads the bytes of an image; raises `ImageError` if they are not those that were indexed."""
        shard = self.check_readable(i)
        offset, length = self._value("offset", i), self._value("length", i)
        digest = self.shard_index.columns["sha256"][self.rows[i]].tobytes()
        for is_last_attempt in (not shard.cacheable, True):
            try:
                content = read_range(shard, offset, length)
            except FileNotFoundError:
                raise ImageError(self.location(i), NO_SHARD) from None
            except OSError as error:
                is_transient = isinstance(error, StorageUnreachable) or error.errno in TRANSIENT_ERRNOS
                error_type = ImageUnreachable if is_transient else ImageError
                raise error_type(self.location(i), error.strerror or str(error)) from None
            if hashlib.sha256(content).digest() == digest:
                return content
            if is_last_attempt:
                break
            drop_copy(shard)  # the local copy may be damaged: read the shard itself
        reason = "its bytes are not those that were indexed (SHA-256)"
        raise ImageError(self.location(i), reason if len(content) == length else Fault.TRUNCATED.reason)

    def check_readable(self, i: int) -> Shard:
        """Returns the shard of an image; raises `ImageError` if the index says that the image cannot be read."""
        shard = self._shard(i)
        if fault := Fault(self._value("fault", i)):
            raise ImageError(self.location(i), fault.reason)
        if shard.size < 0:
            raise ImageError(self.location(i), NO_SHARD)
        if self._value("offset", i) + self._value("length", i) > shard.size:
            raise ImageError(self.location(i), Fault.TRUNCATED.reason)
        return shard

    def byte_sizes(self) -> np.ndarray:
        """Returns the lengths in the index; -1 for an image that cannot be read."""
        offset, length, shard, fault = (
            self.shard_index.columns[column][self.rows] for column in ("offset", "length", "shard", "fault")
        )
        shard_sizes = np.array([shard.size for shard in self.shard_index.shards], dtype=np.int64)[shard]
        return np.where((offset + length > shard_sizes) | (fault > 0), -1, length)

    def sha256(self, indices: np.ndarray) -> np.ndarray:
        """Returns the digests in the index."""
        return self.shard_index.columns["sha256"][self.rows[indices]]

    def cache_key(self, i: int) -> tuple[str, int, int]:
        """Returns a key that changes with the shard and with the image."""
        shard = self.check_readable(i)
        digest = self.shard_index.columns["sha256"][self.rows[i]].tobytes()
        version = hashlib.sha256(shard.version.encode() + digest).digest()
        return self.location(i), self._value("length", i), int.from_bytes(version[:7], "big")

    def find_channels(self) -> Channels:
        """Returns the channels that the index has; without them, the images decide if some have a name as bands do."""
        names = [str(self.shard_index.names[self.rows[i]]).lower() for i in self.probed()]
        may_have_bands = any(name.endswith(BAND_EXTENSIONS) for name in names)
        return super().find_channels() if not self.shard_index.channels and may_have_bands else self.channels

    def read_size(self, i: int) -> tuple[int, int]:
        """Reads height and width from the first bytes, or from all bytes if these are not enough."""
        shard = self.check_readable(i)
        try:
            header = read_range(shard, self._value("offset", i), min(self._value("length", i), HEADER_BYTES))
            return read_size(BytesIO(header), self.location(i))
        except (ImageError, OSError):
            return super().read_size(i)

    def take(self, indices: np.ndarray) -> "ShardImages":
        """Returns some of the images; they share the index."""
        return replace(self, rows=self.rows[indices])

    def _value(self, column: str, i: int) -> int:
        return int(self.shard_index.columns[column][self.rows[i]])

    def _shard(self, i: int) -> Shard:
        return self.shard_index.shards[self._value("shard", i)]
