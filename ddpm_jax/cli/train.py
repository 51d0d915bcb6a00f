"""`ddpm-jax train EXPERIMENT`: train an experiment, resume it, or print what it costs (--dry-run)."""

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import jax
import tyro

from ddpm_jax.cli.options import by_default
from ddpm_jax.devices.cluster import ClusterOptions
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.storage import classes, paths, specs
from ddpm_jax.training.experiment import Experiment

__all__ = ["TrainOptions", "find_experiment", "main", "read_experiment", "train_experiment"]

USAGE = """\
usage: ddpm-jax train EXPERIMENT.py|experiment.json [--workdir DIR] [--dry-run] [overrides]

`ddpm-jax train EXPERIMENT --help` lists every override with its meaning and default.
"""


@dataclass(frozen=True)
class TrainOptions:
    """Train an experiment, or resume its training. Every field of the experiment can be overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    workdir: Annotated[str | None, by_default("runs/NAME", "DIR"), tyro.conf.DisallowNone] = None
    """The folder of the run, for checkpoints, metrics and samples; local, or in an object store (gs://BUCKET/RUN)."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name=""), tyro.conf.DisallowNone] = ClusterOptions()
    profile: Annotated[tuple[int, int] | None, by_default("no trace", "FIRST LAST"), tyro.conf.DisallowNone] = None
    """Write a profiler's trace of the steps FIRST to LAST into the folder of the run."""
    debug_nans: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """If the loss is not finite, name the line of code that made the first such number.
    Training is slower, and keeps a second copy of its state in memory."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the experiment and what it costs, without training."""


def main(arguments: list[str]) -> None:
    """`ddpm-jax train`: the first argument names the experiment, and the others override its fields."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0].startswith("-"):
        raise ValueError(f"the first argument is {arguments[0]!r}; expected an experiment, FILE.py or FILE.json")
    train_experiment(read_experiment(arguments[0]), arguments[1:], f"ddpm-jax train {arguments[0]}")


def train_experiment(experiment: Experiment, arguments: list[str], program: str) -> None:
    """Train an experiment with the overrides of a command line.

    Args:
        experiment: the experiment.
        arguments: the command line, without the program and the experiment.
        program: the name of the program, for its help.
    """
    options = tyro.cli(TrainOptions, args=arguments, default=TrainOptions(experiment), prog=program)
    set_up_jax(options.cluster)
    if options.dry_run:
        from ddpm_jax.cli.dry_run import report

        text = report(options.experiment)
        if jax.process_index() == 0:
            print(text)
        return
    from ddpm_jax.devices.preemption import Preempted
    from ddpm_jax.training.loop import train

    workdir = options.workdir or os.path.join("runs", options.experiment.name)
    try:
        picture = train(options.experiment, workdir, profile=options.profile, debug_nans=options.debug_nans)
        more = f"ddpm-jax sample {workdir} --num-images 1000 --output samples.npz"
        message = f"samples: {picture}\ndraw more with: {more}"
    except Preempted as stop:
        message = str(stop)
    if jax.process_index() == 0:
        print(message)


def find_experiment(text: str | os.PathLike) -> Experiment | None:
    """The experiment of a run's folder, or in FILE.py or FILE.json; None if `text` names none of them.

    Raises what `read_experiment` raises.
    """
    path = paths.run_path(text)
    inside = path / "experiment.json"
    if inside.is_file():
        return read_experiment(inside)
    return read_experiment(path) if path.suffix in (".py", ".json") else None


def read_experiment(file: str | os.PathLike) -> Experiment:
    """The experiment in a Python file (its variable `experiment`) or in a JSON file.

    Raises ValueError or FileNotFoundError; the message names the file and, for Python, the line.
    """
    path = paths.run_path(file)
    if (path / "experiment.json").is_file():
        remedy = f"give {path}/experiment.json, and --workdir {path} to resume it"
        raise ValueError(f"{path} is the folder of a run; {remedy}")
    if not path.is_file():
        missing = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise FileNotFoundError(f"{missing}; expected an experiment, FILE.py or FILE.json")
    if path.suffix == ".json":
        found = specs.load(path)
    elif path.suffix == ".py":
        found = getattr(classes.run_file(paths.local_copy(path)), "experiment", None)
    else:
        raise ValueError(f"{path} is not an experiment; expected FILE.py or FILE.json")
    if not isinstance(found, Experiment):
        where = " called `experiment`" if path.suffix == ".py" else ""
        raise ValueError(f"{path} does not define an Experiment{where}")
    return found
