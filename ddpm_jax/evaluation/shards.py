"""The rows of an array that grows on disk.  After a kill every shard is whole; memory holds one shard at a time.

FOLDER/000000000-000000256.npy      rows 0..255
FOLDER/000000256-000000512.npy      rows 256..511, and so on
"""

import io
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from ddpm_jax.errors import require
from ddpm_jax.storage.paths import RunPath, is_remote, write_file

__all__ = ["Shards", "Some"]

NAME = re.compile(r"(\d{9})-(\d{9})\.npy")


class Shards:
    """Rows that were appended shard by shard; they can be given to the metrics.

    The rows end before the first shard that is missing or cannot be read.
    """

    def __init__(self, folder: RunPath) -> None:
        self.folder = folder
        self._stops: list[int] = []
        self._read = lru_cache(maxsize=2)(self._load)
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        for match in filter(None, map(NAME.fullmatch, found)):
            start, stop = int(match[1]), int(match[2])
            if start == len(self) and self._is_whole(start, stop):
                self._stops.append(stop)

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows; an interruption writes none of them."""
        start, stop = len(self), len(self) + len(rows)
        write_file(self._path(start, stop), lambda file: np.save(file, rows, allow_pickle=False))
        self._stops.append(stop)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, or of increasing indices.  Raises ValueError for an index out of range."""
        indices = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        inside = len(indices) == 0 or (indices[0] >= 0 and indices[-1] < len(self))
        require("index", index, bool(inside), f"rows 0..{len(self) - 1}")
        pieces = [shard[own - start] for start, shard, own in self._cut(indices)]
        return np.concatenate(pieces) if pieces else self._read(0, self._stops[0])[:0]

    def _cut(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, shard, the indices in it), for each shard that holds any of the indices."""
        starts = [0, *self._stops[:-1]]
        bounds = np.searchsorted(indices, [*starts, len(self)])
        for place, (start, stop) in enumerate(zip(starts, self._stops, strict=True)):
            own = indices[bounds[place] : bounds[place + 1]]
            if len(own):
                yield start, self._read(start, stop), own

    def _path(self, start: int, stop: int) -> RunPath:
        return self.folder / f"{start:09d}-{stop:09d}.npy"

    def _load(self, start: int, stop: int) -> Any:
        path = self._path(start, stop)
        if is_remote(path):
            return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _is_whole(self, start: int, stop: int) -> bool:
        """Whether a shard can be read and has as many rows as its name says."""
        try:
            return len(self._load(start, stop)) == stop - start
        except (OSError, ValueError, EOFError):
            return False


class Some:
    """A selection of rows by increasing indices; a row is read when it is needed."""

    def __init__(self, rows: Any, indices: np.ndarray) -> None:
        inside = len(indices) == 0 or (indices[0] >= 0 and indices[-1] < len(rows))
        require("indices", indices, bool(inside), f"rows 0..{len(rows) - 1}")
        self._rows, self._indices = rows, indices

    @classmethod
    def first(cls, rows: Any, n: int) -> "Some":
        """The first rows.

        Args:
            rows: the rows to select from.
            n: the number of rows.
        """
        return cls(rows, np.arange(n))

    @classmethod
    def spread(cls, rows: Any, most: int) -> "Some":
        """All rows, or evenly spaced ones.

        Args:
            rows: the rows to select from.
            most: the largest number of rows to select.
        """
        return cls(rows, np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self._rows[self._indices[index]]
