"""Reading a whole data set to find what is wrong with it, all of it, before a network learns from it."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ddpm_jax.data.accept import as_label, check_axes, check_example, described_images
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.source import HasFiles, Source, axes_are_known
from ddpm_jax.data.sources import InMemory, itself
from ddpm_jax.data.stream import FILE_THREADS

# Examples read between two reports.
CHUNK = 256
# Bytes of image files that are read in a second or two.
FEW_BYTES = 2**25
# Lines of a message about wrong examples.
SHOWN = 10


@dataclass(frozen=True)
class _Seen:
    """What is kept of one example, as many images do not fit into memory."""

    shape: tuple[int, ...]
    low: int
    high: int
    total: float
    label: int | None


@dataclass
class Examination:
    """What is in a data set."""

    count: int = 0
    """How many examples it has."""
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """How many images there are of each (height, width, channels)."""
    first_of: dict[tuple[int, ...], str] = field(default_factory=dict)
    """The first image of each shape."""
    low: int = 255
    high: int = 0
    """The least and the largest value of all images."""
    total: float = 0.0
    values: int = 0
    """The sum of all values, and how many there are."""
    labels: Counter[int] = field(default_factory=Counter)
    """How many examples there are of each label."""
    class_names: tuple[str, ...] = ()
    """The names of the classes 0, 1, ..., where the source has some."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, a line each."""

    @property
    def mean(self) -> float:
        """The mean of all values."""
        return self.total / max(self.values, 1)

    def add(self, name: str, one: "_Seen") -> None:
        """Count one example that is as it should be."""
        self.shapes[one.shape] += 1
        self.first_of.setdefault(one.shape, name)
        self.low, self.high = min(self.low, one.low), max(self.high, one.high)
        self.total, self.values = self.total + one.total, self.values + int(np.prod(one.shape))
        if one.label is not None:
            self.labels[one.label] += 1

    def conclude(self, source: Source, num_classes: int | None) -> None:
        """Add what is wrong with all examples together."""
        known = axes_are_known(source)
        remedy = "size and channels of Folder make all alike" if isinstance(source, Folder) else "resize them"
        if len(self.shapes) > 1:
            found = ", ".join(
                f"{described_images(count, shape)} (first {self.first_of[shape]})"
                for shape, count in self.shapes.most_common(SHOWN)
            )
            self.problems.append(f"the images differ in shape: {found}; {remedy}")
        for shape in self.shapes if not known else ():
            try:
                check_axes(shape, f"{self.first_of[shape]} has shape {shape}", "image")
            except ValueError as error:
                self.problems.append(str(error))
        readable = sum(self.shapes.values())
        if self.labels and sum(self.labels.values()) < readable:
            self.problems.append(f"{readable - sum(self.labels.values()):,} of {readable:,} examples have no label")
        if num_classes is not None:
            self.problems += wrong_classes(self.labels, num_classes, len(self.class_names))


def wrong_classes(labels: Counter[int], num_classes: int, named: int = 0) -> list[str]:
    """What is wrong with labels for a network of `num_classes` classes: a line, or none.

    named: how many classes have a name.
    """
    if named > num_classes:
        return [f"the data have {named} classes; net.num_classes is {num_classes}"]
    outside = sorted(label for label in labels if not 0 <= label < num_classes)
    if not outside:
        return []
    count = sum(labels[label] for label in outside)
    shown = ", ".join(map(str, outside[:SHOWN])) + (", ..." if len(outside) > SHOWN else "")
    return [
        f"net.num_classes is {num_classes}, but {count:,} examples have labels outside 0..{num_classes - 1}: {shown}"
    ]


def examine(
    source: Source, num_classes: int | None = None, reached: Callable[[int], None] = lambda done: None
) -> Examination:
    """Read every example of a source.

    Args:
        source: any source.
        num_classes: that of the network that will learn from it; None: labels may be any integers.
        reached: takes how many examples are read, again and again.

    Raises ValueError or OSError where the source cannot be opened at all.
    """
    source = itself(source)
    found = Examination(count=len(source))
    if found.count == 0:
        found.problems.append("it is empty; expected at least 1 example")
    if isinstance(source, Folder) and source.labels:
        found.class_names = source.class_names
    for start, chunk in _chunks(source):
        for index, one in enumerate(chunk, start):
            if isinstance(one, str):
                found.problems.append(one)
            else:
                found.add(_name(source, index), one)
        reached(start + len(chunk))
    found.conclude(source, num_classes)
    return found


def _chunks(source: Source) -> Iterator[tuple[int, list[_Seen | str]]]:
    """(the number of the first, what was seen of each or what is wrong with it) of all examples, part by part."""

    def read(index: int) -> _Seen | str:
        try:
            if isinstance(source, Folder):  # whose items must all have the shape of the first
                example = {"image": source.read(index), **({"label": source.label(index)} if source.labels else {})}
            else:
                example = source[index]
            check_example(example, index)
            image = np.asarray(example["image"])
            label = int(as_label(example["label"], index)) if "label" in example else None
            return _Seen(image.shape, int(image.min()), int(image.max()), float(image.sum(dtype=np.int64)), label)
        except Exception as error:  # whatever the code of a source raises
            return reason_of(error, f"source[{index}]")

    with ThreadPoolExecutor(1 if isinstance(source, InMemory) else FILE_THREADS) as pool:
        for start in range(0, len(source), CHUNK):
            yield start, list(pool.map(read, range(start, min(start + CHUNK, len(source)))))


def reason_of(error: Exception, what: str) -> str:
    """An error met in reading `what`, as one line; those of this package say by themselves what they are about."""
    if isinstance(error, ValueError):
        return str(error)
    return f"{what} cannot be read ({type(error).__name__}: {error})"


def _name(source: Source, index: int) -> str:
    return str(source.files[index]) if isinstance(source, HasFiles) else f"source[{index}]"


def quick_problems(source: Source, num_classes: int | None) -> list[str]:
    """What is wrong with a source, as far as that is found in a second or two; none where nothing is, or it is large.

    Of arrays in memory all labels are looked at; of a folder of images the classes, and up to 32 MiB all images.
    """
    source = itself(source)
    if isinstance(source, InMemory):
        labels = source.arrays.get("label")
        if num_classes is None or labels is None:
            return []
        numbers, counts = np.unique(labels, return_counts=True)
        return wrong_classes(Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True))), num_classes)
    if not isinstance(source, Folder):
        return []
    if num_classes is not None and source.labels and len(source.class_names) > num_classes:
        return wrong_classes(Counter(), num_classes, len(source.class_names))
    size = 0
    for file in source.files:
        size += file.stat().st_size if file.exists() else 0
        if size > FEW_BYTES:
            return []
    return examine(source, num_classes).problems


def as_message(problems: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f"\n  and {len(problems) - SHOWN:,} more: `ddpm-jax check` lists all" if len(problems) > SHOWN else ""
    return problems[0] if len(problems) == 1 else "the data have faults:\n  " + "\n  ".join(problems[:SHOWN]) + more
