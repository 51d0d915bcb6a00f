"""`ddpm-jax check DATA`: read a whole data set, print what is in it, and list its faults."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax.cli.options import by_default, parse
from ddpm_jax.cli.prepare import DataFolder, FolderOptions, splits_of
from ddpm_jax.cli.train import find_experiment
from ddpm_jax.data import Source, Tfds, accept
from ddpm_jax.data.examine import Examination, examine
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.storage import classes, paths
from ddpm_jax.training.experiment import Experiment

__all__ = ["CheckOptions", "main"]

# The classes that are listed one by one.
SHOWN = 20


@dataclass(frozen=True)
class CheckOptions:
    """Read every image of a data set, and list its faults. The exit status is 1 if there are any."""

    data: Annotated[str, tyro.conf.arg(metavar="DATA"), tyro.conf.Positional]
    """A folder of images, an .npz file, the name of a TFDS data set, an experiment file or a run (for its data).
    FILE.py:NAME is a source that a Python file defines."""
    folder: Annotated[FolderOptions, tyro.conf.arg(name="")] = FolderOptions()
    data_dir: DataFolder = None
    """The folder of all TFDS data sets."""
    num_classes: Annotated[int | None, by_default("that of the experiment, or any label is accepted")] = None
    """The number of classes of the network: labels must be smaller."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax check`."""
    options, faults = parse(CheckOptions, arguments, "check"), 0
    try:
        experiment, num_classes = find_experiment(options.data), options.num_classes
        if experiment and num_classes is None:
            num_classes = experiment.net.num_classes
        sources = {options.data: experiment.data} if experiment else sources_of(options)
        for name, source in sources.items():
            faults += check(name, source, num_classes)
        if experiment and not faults:
            experiment.check()
    except ValueError as error:
        print(f"  wrong     {error}")
        faults += 1
    print(f"{faults:,} fault{'s' if faults != 1 else ''} found" if faults else "no faults found")
    sys.exit(1 if faults else 0)


def check(name: str, source: Source, num_classes: int | None) -> int:
    """Print what a source holds.

    Args:
        name: the name of the source.
        source: the source.
        num_classes: the number of classes that labels may have; None for any.

    Returns:
        The number of faults.
    """
    text = repr(source)
    print(f"{name}: {text if len(text) <= 200 else f'{text[:200]}...'}")
    try:
        with ProgressBar(f"reading {name}", len(source)) as progress:
            found = examine(source, num_classes, progress.reached)
    except ValueError as error:
        print(f"  wrong     {error}")
        return 1
    print("\n".join(f"  {line}" for line in described(found)))
    return len(found.problems)


def described(found: Examination) -> list[str]:
    """What was found, a line each; the faults come last."""
    readable = sum(found.shapes.values())
    lines = [f"examples  {found.count:,}" + (f", of which {readable:,} are fine" if readable < found.count else "")]
    lines += [f"images    {accept.described_images(count, shape)}" for shape, count in found.shapes.most_common(SHOWN)]
    if readable:
        lines.append(f"values    {found.low} to {found.high}, mean {found.mean:.1f}")
    if found.labels:
        lines.append(f"labels    {min(found.labels)} to {max(found.labels)}, {len(found.labels):,} different")
        shown = sorted({*found.labels, *range(len(found.class_names))})
        for label in shown[:SHOWN]:
            name = f" {found.class_names[label]}" if 0 <= label < len(found.class_names) else ""
            lines.append(f"  class {label}{name}: {found.labels[label]:,}")
        lines += [f"  and {len(shown) - SHOWN:,} more classes"] if len(shown) > SHOWN else []
    return lines + [f"wrong     {problem}" for problem in found.problems]


def sources_of(options: CheckOptions) -> dict[str, Source]:
    """The sources that the options name, other than an experiment's; one for each split.

    Raises ValueError or FileNotFoundError if there are none.
    """
    text, path = options.data, paths.local_path(options.data)
    file, _, name = text.rpartition(":")
    if file.endswith(".py"):
        return {text: _defined(paths.local_path(file), name)}
    if path.is_dir() or path.suffix == ".npz":
        if not path.exists():
            raise FileNotFoundError(f"there is no file {text}")
        found = splits_of(path, options.folder)
        return {text if len(found) == 1 else f"{text} {split}": source for split, source in found.items()}
    try:
        whole = Tfds(text, split="all", data_dir=options.data_dir)
    except ValueError:  # it is no name of a data set
        fault = "is of no kind that can be read" if path.exists() else "does not exist"
        expected = "a folder, an .npz, a TFDS name or an experiment"
        raise FileNotFoundError(f"{text} {fault}; expected {expected}") from None
    whole = dataclasses.replace(whole, label_key="label" if "label" in whole.features else None)
    return {f"{text} {split}": dataclasses.replace(whole, split=split) for split in whole.splits}


def _defined(file: Path, name: str) -> Source:
    """The source, or the data of the experiment, that a Python file defines under a name."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    found: Any = getattr(classes.run_file(file), name, None)
    if isinstance(found, Experiment):
        return found.data
    found = found() if isinstance(found, type) else found
    if not isinstance(found, Source):
        raise ValueError(f"{file} defines no source {name}: an object with the methods __len__ and __getitem__")
    return found
