"""The protocol of a data set, called a source, and optional protocols.

    len(source)     the number of examples
    source[i]       {"image": uint8 [height, width, channels]}, and "label": an int32, if there are labels

Any class with these two is a source.  The other protocols here are optional; each states its purpose.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

__all__ = ["Example", "Source", "Subset", "axes_are_known", "read_many", "split_of"]
__all__ += ["DeclaresShape", "HasArrays", "HasFiles", "HasFingerprint", "HasSplit", "KnowsAxes", "ReadsMany"]

Example = dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@runtime_checkable
class ReadsMany(Protocol):
    """A source that reads several examples at once faster than one after another."""

    def __getitems__(self, indices: Any, /) -> Sequence[Example] | Mapping[str, Any]:
        """A list of examples, or one dictionary of stacked arrays."""
        ...


@runtime_checkable
class HasFingerprint(Protocol):
    """A source that describes its content, so that a run notices a change."""

    def fingerprint(self) -> str | Mapping[str, str]:
        """A text that changes with the content, or one for each part."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A source of files, example i in file i; their content is its fingerprint."""

    @property
    def files(self) -> Sequence[str | Path]: ...


@runtime_checkable
class HasArrays(Protocol):
    """A source of arrays in memory; their content is its fingerprint."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...


@runtime_checkable
class HasSplit(Protocol):
    """A source with a field `split`, such as "train".

    The same dataclass with another split is another part of the data.
    """

    @property
    def split(self) -> str: ...


@runtime_checkable
class DeclaresShape(Protocol):
    """A source whose image shape is known before the data exist, for `--dry-run`; None if it is not."""

    @property
    def declared_shape(self) -> tuple[int, int, int] | None: ...


@runtime_checkable
class KnowsAxes(Protocol):
    """A source whose axes are known, as those of image files are.

    The shapes of other sources are checked for a wrong order of axes.
    """

    @property
    def axes_are_known(self) -> bool: ...


def axes_are_known(source: Source) -> bool:
    """Whether the shape of the images need not be checked for a wrong order of axes."""
    return isinstance(source, KnowsAxes) and bool(source.axes_are_known)


def split_of(source: Source) -> str | None:
    """The split of a source; None if it has none."""
    return source.split if isinstance(source, HasSplit) and isinstance(source.split, str) else None


def read_many(source: Source, indices: Int[np.ndarray, " batch"]) -> Any:
    """Several examples of a source.

    Args:
        source: the source.
        indices: the numbers of the examples.

    Returns:
        A list of examples, or one dictionary of stacked arrays.
    """
    if isinstance(source, ReadsMany):
        return source.__getitems__(indices)
    return [source[int(index)] for index in indices]


class Subset:
    """The examples of a source at `indices`, in that order."""

    def __init__(self, source: Source, indices: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        self._source, self._indices = source, np.asarray(indices)
        self.axes_are_known = axes_are_known(source)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def __getitems__(self, indices: Int[np.ndarray, " batch"]) -> Any:
        return read_many(self._source, self._indices[indices])
