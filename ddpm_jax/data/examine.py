"""Read a whole data set to find all its faults before a network learns from it."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ddpm_jax.data.accept import as_label, check_axes, check_example, described_images
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.source import HasFiles, Source, axes_are_known
from ddpm_jax.data.sources import InMemory, itself
from ddpm_jax.data.stream import FILE_THREADS

__all__ = ["Examination", "as_message", "examine", "quick_problems", "reason_of"]

# Examples between two reports.
CHUNK = 256
# Bytes of image files that take a second or two to read.
FEW_BYTES = 2**25
# Lines of a message about faulty examples.
SHOWN = 10


@dataclass
class Examination:
    """The content of a data set."""

    count: int = 0
    """The number of examples."""
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """The number of images of each (height, width, channels)."""
    first_of: dict[tuple[int, ...], str] = field(default_factory=dict)
    """The name of the first image of each shape."""
    low: int = 255
    high: int = 0
    """The lowest and the highest value of all images."""
    total: int = 0
    """The sum of all values."""
    labels: Counter[int] = field(default_factory=Counter)
    """The number of examples of each label."""
    class_names: tuple[str, ...] = ()
    """The names of the classes 0, 1, ..., if the source has some."""
    problems: list[str] = field(default_factory=list)
    """The faults, one line each."""

    @property
    def mean(self) -> float:
        """The mean of all values."""
        return self.total / max(sum(count * math.prod(shape) for shape, count in self.shapes.items()), 1)

    def _add(self, name: str, shape: tuple[int, ...], low: int, high: int, total: int, label: int | None) -> None:
        """Count one example without faults."""
        self.shapes[shape] += 1
        self.first_of.setdefault(shape, name)
        self.low, self.high, self.total = min(self.low, low), max(self.high, high), self.total + total
        if label is not None:
            self.labels[label] += 1

    def _conclude(self, source: Source, num_classes: int | None) -> None:
        """Add the faults of all examples together."""
        if self.count == 0:
            self.problems.append("it is empty; expected at least 1 example")
        if len(self.shapes) > 1:
            remedy = "size and channels of Folder make all alike" if isinstance(source, Folder) else "resize them"
            common = self.shapes.most_common(SHOWN)
            found = [f"{described_images(count, shape)} (first {self.first_of[shape]})" for shape, count in common]
            self.problems.append(f"the images differ in shape: {', '.join(found)}; {remedy}")
        for shape in () if axes_are_known(source) else self.shapes:
            try:
                check_axes(shape, f"{self.first_of[shape]} has shape {shape}", "image")
            except ValueError as error:
                self.problems.append(str(error))
        readable, labelled = self.shapes.total(), self.labels.total()
        if 0 < labelled < readable:
            self.problems.append(f"{readable - labelled:,} of {readable:,} examples have no label")
        if num_classes is not None:
            self.problems += _wrong_classes(self.labels, num_classes, len(self.class_names))


def _wrong_classes(labels: Counter[int], num_classes: int, named: int = 0) -> list[str]:
    """The fault of labels for a network of `num_classes` classes, as a line, or no line; `named` classes have names."""
    if named > num_classes:
        return [f"the data have {named} classes; net.num_classes is {num_classes}"]
    outside = sorted(label for label in labels if not 0 <= label < num_classes)
    if not outside:
        return []
    count = sum(labels[label] for label in outside)
    shown = ", ".join(map(str, outside[:SHOWN])) + (", ..." if len(outside) > SHOWN else "")
    fault = f"{count:,} examples have labels outside 0..{num_classes - 1}: {shown}"
    return [f"net.num_classes is {num_classes}, but {fault}"]


def examine(
    source: Source, num_classes: int | None = None, reached: Callable[[int], None] = lambda done: None
) -> Examination:
    """Read every example of a source.

    Args:
        source: any source.
        num_classes: that of the network that will learn from it; None: labels may be any integers.
        reached: called with the number of examples read, after every 256.

    Returns:
        What was found, faults included.

    Raises:
        ValueError: the source cannot be opened at all.
        OSError: the same, for a file that cannot be read.
    """
    source = itself(source)
    names = source.class_names if isinstance(source, Folder) and source.labels else ()
    found = Examination(len(source), class_names=names)
    with ThreadPoolExecutor(1 if isinstance(source, InMemory) else FILE_THREADS) as pool:
        for start in range(0, found.count, CHUNK):
            indices = range(start, min(start + CHUNK, found.count))
            for index, one in zip(indices, pool.map(partial(_statistics, source), indices), strict=True):
                if isinstance(one, str):
                    found.problems.append(one)
                else:
                    found._add(_name(source, index), *one)
            reached(indices.stop)
    found._conclude(source, num_classes)
    return found


def _name(source: Source, index: int) -> str:
    return str(source.files[index]) if isinstance(source, HasFiles) else f"source[{index}]"


def _statistics(source: Source, index: int) -> tuple[tuple[int, ...], int, int, int, int | None] | str:
    """(shape, lowest value, highest value, sum, label) of an example, or its fault."""
    try:
        if isinstance(source, Folder):  # source[index] would require the shape of the first image
            example = {"image": source.read(index), **({"label": source.label(index)} if source.labels else {})}
        else:
            example = source[index]
        check_example(example, index)
        image = np.asarray(example["image"])
        label = int(as_label(example["label"], index)) if "label" in example else None
        return image.shape, int(image.min()), int(image.max()), int(image.sum(dtype=np.int64)), label
    except Exception as error:  # the code of a source may raise anything
        return reason_of(error, f"source[{index}]")


def reason_of(error: Exception, what: str) -> str:
    """An error as one line.

    Args:
        error: the error.
        what: what was being read; a ValueError of this package names it already.

    Returns:
        The line.
    """
    return str(error) if isinstance(error, ValueError) else f"{what} cannot be read ({type(error).__name__}: {error})"


def quick_problems(source: Source, num_classes: int | None) -> list[str]:
    """The faults of a source that are found in a second or two.

    They are the wrong labels of arrays in memory, the classes of a folder, and all faults of a folder of up to 32 MiB.

    Args:
        source: any source.
        num_classes: as in `examine`.

    Returns:
        The faults, one line each.
    """
    source = itself(source)
    if isinstance(source, InMemory):
        labels = source.arrays.get("label")
        return [] if num_classes is None or labels is None else _wrong_classes(Counter(labels.tolist()), num_classes)
    if not isinstance(source, Folder):
        return []
    if num_classes is not None and source.labels and len(source.class_names) > num_classes:
        return _wrong_classes(Counter(), num_classes, len(source.class_names))
    sizes = (file.stat().st_size for file in source.files if file.exists())
    many = any(size > FEW_BYTES for size in itertools.accumulate(sizes))
    return [] if many else examine(source, num_classes).problems


def as_message(problems: list[str]) -> str:
    """The first few problems, and the number of the others."""
    more = f"\n  and {len(problems) - SHOWN:,} more: `ddpm-jax check` lists all" if len(problems) > SHOWN else ""
    return problems[0] if len(problems) == 1 else "the data have faults:\n  " + "\n  ".join(problems[:SHOWN]) + more
