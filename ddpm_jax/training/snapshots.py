"""The averages of a run on disk: in its checkpoints, and in snapshots that stay for good.

A checkpoint holds the average of the first profile as the item `ema` and further ones as `ema_1`, `ema_2`, ...; a
snapshot, RUN/snapshots/STEP/, holds the same items and nothing else.  Any one can be read without the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.errors import require
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.errors import CheckpointError
from ddpm_jax.storage.paths import RunPath
from ddpm_jax.training.average import Averaging, PowerEma, require_width
from ddpm_jax.training.posthoc import coefficients, fit_error

# A combination whose profile is further than this from the one wanted is used, with a warning.
TOLERANCE = 0.03


def item_name(index: int) -> str:
    """What the average of profile number `index` is called in checkpoints and snapshots."""
    return f"ema_{index}" if index else "ema"


def as_items(averages: tuple[Any, ...]) -> dict[str, Any]:
    """The averages as a checkpoint holds them."""
    return {item_name(index): {"params": tree} for index, tree in enumerate(averages)}


def from_items(items: dict[str, Any]) -> tuple[Any, ...]:
    """The averages that `as_items` gave, whatever other items there are."""
    count = sum(item_name(index) in items for index in range(len(items)))
    return tuple(items[item_name(index)]["params"] for index in range(count))


class Snapshots:
    """The snapshots of a training of `last` steps in `workdir`; none for an averaging that is never due for one.

    A run that is killed and started again has the snapshots of one that was not: earlier snapshots are on disk
    before a checkpoint is begun (`wait`), and `resume` puts right those at and after the checkpoint's step.
    """

    def __init__(self, workdir: RunPath, averaging: Averaging, last: int) -> None:
        self._averaging, self._last = averaging, last
        failed = "training continues without it, and the next is due at step {}"
        self._checkpoints = Checkpoints(workdir / "snapshots", noun="snapshot", failed=failed)

    def due(self, step: int) -> bool:
        """Whether there is to be a snapshot of this step."""
        return self._averaging.snapshot_due(step, self._last)

    def resume(self, step: int, averages: tuple[Any, ...]) -> None:
        """Set aside snapshots of steps after the state's, and save that of its step if it is missing."""
        self._checkpoints.remove_leftovers()
        self._checkpoints.set_aside(after=step, replace=True)
        if step > 0 and self.due(step) and step not in self._checkpoints.steps():
            self.save(step, averages)

    def save(self, step: int, averages: tuple[Any, ...]) -> None:
        """Begin to save; returns once the arrays are copied off the devices, so they may be donated."""
        after = next((later for later in range(step + 1, self._last + 1) if self.due(later)), None)
        self._checkpoints.save(step, as_items(averages), self._about(), next_step=after)

    def finish(self, step: int, averages: tuple[Any, ...]) -> None:
        """Wait; the snapshot of `step`, the last, is on disk then if there is to be one.

        Raises RunError if the second attempt fails too.
        """
        if self.due(step):
            self._checkpoints.finish(step, as_items(averages), self._about())

    def _about(self) -> dict[str, Any]:
        return {"profiles": list(self._averaging.profiles)}

    @property
    def report(self) -> Callable[[str], None]:
        """The function that is called with a line about each failed save."""
        return self._checkpoints.report

    @report.setter
    def report(self, report: Callable[[str], None]) -> None:
        self._checkpoints.report = report

    def wait(self) -> None:
        """Block until what was begun is on disk."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Wait for what was begun, and let go of the folder."""
        self._checkpoints.close()


@dataclass(frozen=True)
class Source:
    """One average on disk: that of profile number `index` after `step` steps."""

    store: Checkpoints
    step: int
    index: int

    def read(self, shapes: Any) -> Any:
        """The parameters; raises CheckpointError if they cannot be read or differ from what was written."""
        name = item_name(self.index)
        return self.store.restore(self.step, lambda about: {name: {"params": shapes}})[name]["params"]


def read_average(
    folder: RunPath,
    averaging: Averaging,
    profile: float,
    shapes: Callable[[dict[str, Any]], Any],
    report: Callable[[str], None],
) -> tuple[int, dict[str, Any], Any] | None:
    """(step, about, params) of the newest valid checkpoint in a run's folder; None if there is none.

    Args:
        folder: the folder of the run.
        averaging: the averages of the run.
        profile: one of `averaging.profiles`.  For `PowerEma` any width: it is made from the snapshots and the newest
            averages, which are read one at a time.
        shapes: a function of the checkpoint's description that returns the parameters' shapes, dtypes and shardings.
        report: called with a line about each damaged checkpoint, which is skipped, and about a poor fit.

    Raises:
        ValueError: the run has no such average, or everything is damaged.
        FileNotFoundError: snapshots are needed, and there are none yet.
    """
    kept = profile in averaging.profiles
    if isinstance(averaging, PowerEma):
        require_width("ema", profile)
    else:
        require("ema", profile, kept, f"an average that the run has kept: {_listed(averaging)}")
    name = item_name(averaging.profiles.index(profile) if kept else 0)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        found = checkpoints.restore_newest(lambda about: {name: {"params": shapes(about)}}, report)
        if found is None:
            return None
        step, items = found
        params, about = items.pop(name)["params"], items["about"]
        if not kept:
            del params  # what is read next takes its place in memory
            params = _reconstruct(folder, checkpoints, averaging, profile, step, shapes(about), report)
    finally:
        checkpoints.close()
    return step, about, params


def _reconstruct(
    folder: RunPath,
    checkpoints: Checkpoints,
    averaging: Averaging,
    width: float,
    step: int,
    shapes: Any,
    report: Callable[[str], None],
) -> Any:
    """The average of a width that the run did not keep, at `step`."""
    snapshots = Checkpoints(folder / "snapshots")
    try:
        steps = [at for at in snapshots.steps() if at <= step]
        if not steps:
            raise FileNotFoundError(
                f"{folder} has no snapshots yet, from which the average of width {width} would be made; "
                f"train longer, or take a width that it has: {_listed(averaging)}"
            )
        stores = {**dict.fromkeys(steps, snapshots), step: checkpoints}
        sources = [Source(stores[at], at, index) for at in sorted(stores) for index in range(len(averaging.profiles))]
        return combine(sources, averaging.profiles, width, step, shapes, report)
    finally:
        snapshots.close()


def combine(
    sources: list[Source],
    widths: tuple[float, ...],
    width: float,
    step: int,
    shapes: Any,
    report: Callable[[str], None],
) -> Any:
    """The parameters averaged with the profile of `width` at `step`, as nearly as the sources that are whole allow.

    Raises CheckpointError where none is whole.
    """
    sources = list(sources)
    while sources:
        problem = ([widths[source.index] for source in sources], [source.step for source in sources], width, step)
        c = coefficients(*problem)
        total = None
        for source, factor in zip(sources, c, strict=True):
            try:
                total = _add(total, source.read(shapes), jnp.float32(factor))
            except CheckpointError as error:
                report(f"{source.store.folder}: {error}; the average is made without it")
                sources.remove(source)
                break
        else:
            error = fit_error(c, *problem)
            if error > TOLERANCE:
                report(
                    f"the profile of width {width} at step {step} is fitted with an error of {error:.1%}; more "
                    "snapshots (ema.snapshot_every) or a nearer width among them (ema.others) would make it smaller"
                )
            return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, shapes)
    raise CheckpointError(f"no average of width {width} can be made: all that it would be made from is damaged")


def _add(total: Any, tree: Any, factor: Any) -> Any:
    return _scaled(tree, factor) if total is None else _sum(total, tree, factor)


@jax.jit
def _scaled(tree: Any, factor: Any) -> Any:
    return jax.tree.map(lambda leaf: factor * leaf.astype(jnp.float32), tree)


@jax.jit(donate_argnums=0)
def _sum(total: Any, tree: Any, factor: Any) -> Any:
    return jax.tree.map(lambda old, leaf: old + factor * leaf.astype(jnp.float32), total, tree)


def _listed(averaging: Averaging) -> str:
    return ", ".join(map(str, averaging.profiles))
