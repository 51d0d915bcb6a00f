"""Runs made from diffusers folders, and diffusers folders made from runs.

An imported run has one checkpoint, of step 0, with the weights, which are also its averages, and no state of an
optimizer.  It can be sampled from and evaluated.  Further training must keep the network, the schedule and the target,
for which the weights were trained; everything else can be changed until the first step.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import PurePath

import jax
import numpy as np

from ddpm_jax.data.deferred import Deferred
from ddpm_jax.diffusion.objective import Hybrid, SquaredError
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.card import ORIGIN, card_text
from ddpm_jax.interop.folder import appearing, write_json
from ddpm_jax.run import load_run
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.paths import RunPath, run_path
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.snapshots import as_items

__all__ = ["experiment_of", "export_run", "import_run"]

Report = Callable[[str], None]


def import_run(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    size: tuple[int, int] | None = None,
    variant: str | None = None,
    label_dropout: float = 0.0,
    data: str | None = None,
    report: Report = warnings.warn,
) -> Experiment:
    """Make a run from the network in a diffusers folder.

    Args:
        folder: the diffusers folder.
        output: the folder of the run, which must be new.
        size, variant, label_dropout, report: as for `interop.diffusers.read`.
        data: the .npz file or folder of images for further training; None to name it later.

    Returns:
        The experiment of the run.

    Raises:
        RunError: `output` exists already.
        ValueError, FileNotFoundError: as for `interop.diffusers.read`.
    """
    output = run_path(output)
    model = diffusers.read(folder, size=size, variant=variant, label_dropout=label_dropout, report=report)
    experiment = experiment_of(model, output.name or "imported", data)
    with appearing(output, "experiment.json", "give another --output") as made:
        checkpoints = Checkpoints(made / "checkpoints")
        try:
            about = {"image_shape": list(model.image_shape), "imported": str(folder)}
            checkpoints.finish(0, as_items((jax.tree.map(jax.numpy.asarray, model.params),)), about)
        finally:
            checkpoints.close()
        write_json(made / ORIGIN, {"from": PurePath(str(folder)).name})
        specs.save(experiment, made / "experiment.json")
    return experiment


def experiment_of(model: diffusers.Model, name: str, data: str | None = None) -> Experiment:
    """The experiment that trains a model further, with the parts of the model and defaults for the rest.

    Args:
        model: the model.
        name: the name of the experiment.
        data: the .npz file or folder of images; None to name it later.
    """
    return Experiment(
        name=name,
        data=Deferred(model.image_shape, data, labels=model.net.num_classes is not None),
        net=model.net,
        schedule=model.schedule,
        target=model.target,
        variance=model.variance,
        objective=Hybrid() if model.variance.learned else SquaredError(),
        sampler=model.sampler,
        clip=model.clip,
    )


def export_run(
    run: str | os.PathLike,
    output: str | os.PathLike,
    *,
    ema: float | None = None,
    license: str | None = None,
    report: Report = warnings.warn,
) -> RunPath:
    """Write an average of a run's parameters as a folder that diffusers reads.

    Args:
        run: the folder of the run.
        output: the folder to write, which must be new.
        ema: the average, as for `load_run`.
        license: the identifier of the model's licence, for its card; None if it is not known.
        report: takes a line for what diffusers cannot express and does not need.

    Returns:
        The path of `output`.

    Raises:
        RunError: `output` exists already.
        ValueError: diffusers cannot express a part of the run, or `load_run` cannot read it.
        FileNotFoundError: there is no such run.
    """
    loaded, output = load_run(run, ema=ema), run_path(output)
    of = loaded.experiment
    parts = of.schedule, of.target, of.variance, of.clip, of.sampler
    model = diffusers.Model(of.net, jax.tree.map(np.asarray, loaded.params), loaded.image_shape, *parts)
    card = card_text(loaded, run_path(run), output.name, license)
    diffusers.write(output, model, card=card, report=report)
    return output
