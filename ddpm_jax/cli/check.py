"""`ddpm-jax check DATA`: read a whole data set, and say what is in it and what is wrong with it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ddpm_jax.cli.prepare import PrepareOptions, splits_of
from ddpm_jax.cli.train import read_experiment
from ddpm_jax.data.accept import described_images
from ddpm_jax.data.examine import Examination, examine
from ddpm_jax.data.folder import Fit
from ddpm_jax.data.source import Source
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.storage.classes import run_file
from ddpm_jax.storage.paths import local_path
from ddpm_jax.training.experiment import Experiment

# Classes that are listed by name.
SHOWN = 20


@dataclass(frozen=True)
class CheckOptions:
    """Read every image of a data set; exit status 1 where something is wrong, with a line for each fault."""

    data: tyro.conf.Positional[str]
    """A folder of images, an .npz, the name of a TFDS data set, an experiment file (for its data), the folder of a run,
    or FILE.py:NAME, a source that a file defines."""
    labels: bool = False
    """For a folder: its sub-folders are classes."""
    size: int | None = None
    """For a folder: the height and width that images are resized to; kept as they are by default."""
    fit: Fit = "cover"
    """For a folder: how images become square, as in Folder."""
    channels: Literal[1, 3] | None = None
    """For a folder: 1 converts all to grey, 3 all to RGB; kept as they are by default."""
    data_dir: str | None = None
    """For TFDS: the folder of all data sets; by default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    num_classes: int | None = None
    """How many classes the network will have: labels must lie below.  By default that of the experiment, if any."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax check`."""
    options = tyro.cli(CheckOptions, args=arguments, prog="ddpm-jax check")
    num_classes, faults = options.num_classes, 0
    try:
        found = sources_of(options)
    except ValueError as error:
        found, faults = {}, _wrong(error)
    if isinstance(found, Experiment) and num_classes is None:
        num_classes = found.net.num_classes
    sources = {"": found.data} if isinstance(found, Experiment) else found
    for name, source in sources.items():
        try:
            faults += check(name or options.data, source, num_classes)
            if isinstance(found, Experiment) and not faults:
                found.check()
        except ValueError as error:
            faults += _wrong(error)
    print(f"{faults:,} fault{'s' if faults != 1 else ''} found" if faults else "no faults found")
    sys.exit(1 if faults else 0)


def _wrong(error: ValueError) -> int:
    print(f"  wrong     {error}")
    return 1


def check(name: str, source: Source, num_classes: int | None) -> int:
    """Print what a source holds; returns how many faults it has."""
    print(f"{name}: {short(source)}")
    with ProgressBar(f"reading {name}", len(source)) as waiting:
        found = examine(source, num_classes, waiting.reached)
    print("\n".join(f"  {line}" for line in described(found)))
    return len(found.problems)


def described(found: Examination) -> list[str]:
    """What was found, a line each; the faults at the end."""
    readable = sum(found.shapes.values())
    lines = [f"examples  {found.count:,}" + (f", of which {readable:,} are fine" if readable < found.count else "")]
    lines += [f"images    {described_images(count, shape)}" for shape, count in found.shapes.most_common(SHOWN)]
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


def sources_of(options: CheckOptions) -> Any:
    """The sources that are named, by their names, or an experiment.

    Raises ValueError or FileNotFoundError if there are none.
    """
    text = options.data
    path = local_path(text)
    file, _, name = text.rpartition(":")
    if file.endswith(".py"):
        return {"": _defined(local_path(file), name)}
    if (path / "experiment.json").is_file():
        return read_experiment(path / "experiment.json")
    if path.suffix in (".py", ".json"):
        return read_experiment(path)
    if path.is_dir() or path.suffix == ".npz":
        if not path.exists():
            raise FileNotFoundError(f"there is no file {text}")
        how = {"size": options.size, "fit": options.fit, "channels": options.channels, "labels": options.labels}
        found = splits_of(PrepareOptions("check", path, **how))
        return {f"{text} {split}": source for split, source in found.items()} if len(found) > 1 else {"": _only(found)}
    if not re.fullmatch(r"[a-zA-Z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", text):
        fault = "is of no kind that is read" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{text} {fault}; expected a folder, an .npz, a TFDS name or an experiment")
    whole = Tfds(text, split="all", data_dir=options.data_dir)
    return {f"{text} {split}": _labelled(text, split, options.data_dir) for split in whole.splits}


def _labelled(name: str, split: str, data_dir: str | None) -> Tfds:
    """A split of a TFDS data set, with its labels where it has the feature `label`."""
    source = Tfds(name, split=split, data_dir=data_dir)
    return Tfds(name, split=split, data_dir=data_dir, label_key="label") if "label" in source.features else source


def _only(found: dict[str, Source]) -> Source:
    (source,) = found.values()
    return source


def _defined(file: Path, name: str) -> Source:
    """The source, or the data of the experiment, that a Python file defines under a name."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    found: Any = getattr(run_file(file), name, None)
    if isinstance(found, Experiment):
        return found.data
    found = found() if isinstance(found, type) else found
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise ValueError(f"{file} defines no source {name}: an object with the methods __len__ and __getitem__")
    return found


def short(source: Source, most: int = 200) -> str:
    """The source as it is written in an experiment file, cut where that is long."""
    text = repr(source)
    return text if len(text) <= most else f"{text[:most]}..."
