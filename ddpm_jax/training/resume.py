"""How a training starts: what must hold before anything is written, the step, and the state to go on from."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.devices.mesh import by_example, shardings, with_sharding
from ddpm_jax.diffusion.arrays import stream
from ddpm_jax.errors import RunError, require
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints, steps_in
from ddpm_jax.storage.paths import RunPath, move_tree, write_bytes
from ddpm_jax.training.experiment import Experiment, conflicts
from ddpm_jax.training.snapshots import as_items, from_items
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Recipe, TrainStep, compile_step


def check_resumable(experiment: Experiment, workdir: RunPath) -> None:
    """Raise RunError unless `workdir` is new, or holds a run that this experiment continues."""
    specs.encode(experiment)  # what cannot be written is an error before anything is
    specs.sources(experiment)
    path = workdir / "experiment.json"
    if workdir.exists() and not workdir.is_dir():
        raise RunError(f"{workdir} is a file; --workdir names a folder")
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise RunError(f"{workdir} holds checkpoints but no experiment.json; choose another --workdir")
        return
    reached = max(steps_in(workdir / "checkpoints"), default=None)
    if reached is None:
        return  # nothing was learned yet: another run may take the folder
    try:
        there = specs.load(path)
        require("experiment.json", type(there).__name__, isinstance(there, Experiment), "an Experiment")
    except (ValueError, OSError) as error:
        raise RunError(
            f"{workdir} holds a run whose experiment.json cannot be read ({error}). Put a copy of it back, or choose "
            "another --workdir."
        ) from None
    differing = conflicts(there, experiment, begun=reached > 0)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise RunError(
            f"{workdir} holds a run of a different experiment:\n{listed}\n"
            "Choose another --workdir for a new run, or give the values from there to go on with the old one."
        )
    if reached > experiment.num_steps:
        raise RunError(
            f"{workdir} holds a run that is at step {reached} already, and num_steps is {experiment.num_steps}; give "
            f"--num-steps {reached} or more, or choose another --workdir"
        )


# What a run has written about its steps and itself.
WRITTEN = ("experiment.json", "data.json", "metrics.jsonl", "tensorboard", "samples")


def set_aside_lost(workdir: RunPath, report: Callable[[str], None]) -> None:
    """Where metrics or pictures are left of a run that has no checkpoint, move them to a folder of their own.

    Training starts at step 0 there, and would write over them.
    """
    if steps_in(workdir / "checkpoints"):
        return
    metrics, samples = workdir / "metrics.jsonl", workdir / "samples"
    has_metrics = metrics.exists() and metrics.read_bytes().strip()
    if not has_metrics and not (samples.is_dir() and any(samples.iterdir())):
        return
    number = next(n for n in itertools.count(1) if not (workdir / f"lost-{n}").exists())
    target = workdir / f"lost-{number}"
    target.mkdir()
    for file in workdir.glob("*.py"):
        write_bytes(target / file.name, file.read_bytes())
    for name in WRITTEN:
        if (workdir / name).is_dir():
            move_tree(workdir / name, target / name)
        elif (workdir / name).exists():
            write_bytes(target / name, (workdir / name).read_bytes())
            (workdir / name).unlink()
    report(
        f"{workdir} has metrics or pictures of a run, but no checkpoint to resume from: training starts at step 0. "
        f"What the run left is kept in {target}"
    )


def fresh_state(experiment: Experiment, recipe: Recipe, image_shape: tuple[int, int, int]) -> TrainState:
    """The state before the first step."""
    return recipe.start(experiment.net.init(stream(jax.random.key(experiment.seed), "init"), image_shape))


def prepare_step(
    experiment: Experiment, mesh: Mesh, image_shape: tuple[int, int, int], donate: bool = True
) -> tuple[TrainStep, Any]:
    """The step for a mesh, and the shapes, dtypes and shardings of what it takes: (state, batch, key).

    It is traced but not compiled: what does not fit is an error now.  donate: the state given to it is lost.
    """
    recipe = experiment.recipe()
    state = jax.eval_shape(lambda: fresh_state(experiment, recipe, image_shape))
    state = with_sharding(state, experiment.mesh.place(mesh, state))
    size = experiment.batch_size
    batch = {"image": jax.ShapeDtypeStruct((size, *image_shape), np.uint8)}
    if getattr(experiment.net, "num_classes", None):
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    # With their shardings: otherwise the first step, whose arrays have them, would be traced once more.
    shapes = state, with_sharding(batch, by_example(mesh)), jax.eval_shape(lambda: jax.random.key(0))
    step = compile_step(recipe, shardings(state), donate)
    jax.eval_shape(step, *shapes)
    return step, shapes


def start_state(
    experiment: Experiment, shapes: Any, checkpoints: Checkpoints, report: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """The newest state on disk and what is said about it, or a new one; with the shardings of `shapes`.

    Of weights that were imported a new one, too, which starts at them.
    """

    def wanted(about: dict[str, Any]) -> dict[str, Any]:
        return as_items(shapes.ema_params[:1]) if "imported" in about else as_trees(shapes)

    found = checkpoints.restore_newest(wanted, report)
    if found is None:
        checkpoints.set_aside(after=0)  # one that was not finished
        fresh = fresh_state(experiment, experiment.recipe(), experiment.image_shape)
        return jax.device_put(fresh, shardings(shapes)), {}
    step, trees = found
    checkpoints.set_aside(after=step)
    if "training" not in trees:
        (params,) = from_items(trees)
        return jax.device_put(experiment.recipe().start(params), shardings(shapes)), trees["about"]
    return TrainState(ema_params=from_items(trees), **trees["training"]), trees["about"]


def as_trees(state: Any) -> dict[str, Any]:
    """The state as a checkpoint holds it: what sampling needs by itself, and the rest."""
    rest = {name: getattr(state, name) for name in ("step", "params", "opt_state", "timesteps")}
    return {**as_items(state.ema_params), "training": rest}
