"""How a training starts: what must hold before anything is written, the step, and the state to start from."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from ddpm_jax.data.given import Given
from ddpm_jax.errors import RunError, require
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints, steps_in
from ddpm_jax.storage.classes import sources
from ddpm_jax.storage.comparison import changed_code, differences
from ddpm_jax.storage.paths import RunPath, move_tree, write_bytes
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.plan import Plan
from ddpm_jax.training.snapshots import as_items, from_items
from ddpm_jax.training.state import TrainState

# Fields that may change when a run is resumed: its length, and what it writes.
FREE_TO_CHANGE = frozenset((
    "name", "num_steps", "accumulate", "mesh", "sampler", "clip", "log_every", "checkpoint_every", "keep_last",
    "keep_every", "sample_every", "num_samples",
))  # fmt: skip


# What weights that were imported know; the rest may change until the first step is taken, and these fields of net.
KNOWN_BY_WEIGHTS = ("net", "schedule", "target")
UNKNOWN_TO_WEIGHTS = ("net.dropout:", "net.dtype:", "net.remat:")


def conflicts(old: Experiment, new: Experiment, begun: bool = True) -> list[str]:
    """The fields that prevent a run of `old` from being resumed as `new`; an empty list if it can be.

    The length may change only if the learning rate does not depend on it.  begun: False where no step is taken yet.
    """
    free = FREE_TO_CHANGE - ({"num_steps"} if old.optimizer.depends_on_length else set())
    fixed = [field.name for field in dataclasses.fields(old) if field.name not in free]
    fixed = [name for name in fixed if begun or name in KNOWN_BY_WEIGHTS]
    encoded_old, encoded_new = specs.encode(old), specs.encode(new)
    lines = [line for name in fixed for line in differences(encoded_old[name], encoded_new[name], name)]
    lines = [line for line in lines if begun or not line.startswith(UNKNOWN_TO_WEIGHTS)]
    if isinstance(old.data, Given) and isinstance(new.data, Given):  # what they hold is compared by itself
        lines = [line for line in lines if not line.startswith("data.digest:")]
    changed = [(name, cls) for name in fixed for cls in changed_code(getattr(old, name), getattr(new, name))]
    return lines + [f"{name}: the code of {cls} has changed" for name, cls in changed]


def check_resumable(experiment: Experiment, workdir: RunPath) -> None:
    """Raise RunError unless `workdir` is new, or holds a run that this experiment continues."""
    specs.encode(experiment)  # what cannot be written is an error before anything is
    sources(experiment)
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
            f"{workdir} holds a run whose experiment.json cannot be read ({error}). Restore it from a copy, or choose "
            "another --workdir."
        ) from None
    differing = conflicts(there, experiment, begun=reached > 0)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise RunError(
            f"{workdir} holds a run of a different experiment:\n{listed}\n"
            "Choose another --workdir for a new run, or use the values of that run to resume it."
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


def start_state(
    plan: Plan, checkpoints: Checkpoints, report: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
    """The newest valid state on disk and what its checkpoint says of itself, or a fresh state.

    A run whose weights were imported starts from these weights.
    """

    def wanted(about: dict[str, Any]) -> dict[str, Any]:
        return as_items(plan.state.ema_params[:1]) if "imported" in about else as_trees(plan.state)

    found = checkpoints.restore_newest(wanted, report)
    if found is None:
        checkpoints.set_aside(after=0)  # one that was not finished
        return plan.fresh_state(), {}
    step, trees = found
    checkpoints.set_aside(after=step)
    if "training" not in trees:
        (params,) = from_items(trees)
        return plan.on_devices(plan.recipe.start(params)), trees["about"]
    return TrainState(ema_params=from_items(trees), **trees["training"]), trees["about"]


def as_trees(state: Any) -> dict[str, Any]:
    """The state as a checkpoint holds it: what sampling needs by itself, and the rest."""
    rest = {name: getattr(state, name) for name in ("step", "params", "opt_state", "timesteps")}
    return {**as_items(state.ema_params), "training": rest}
