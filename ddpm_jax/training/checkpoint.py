"""Checkpoints of the training state, by Orbax: written in the background, verified when read.

Orbax writes a step into a temporary folder and renames it, so a killed save leaves no half checkpoint.
What it does not notice is a flipped bit, so a digest of every array is saved along with it.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

logging.getLogger("absl").setLevel(logging.ERROR)


class CheckpointError(ValueError):
    """No checkpoint in a folder can be used; the message says why, for each."""


@jax.jit
def digest(array: Array) -> UInt32[Array, ""]:
    """The sum of the array's words, each times an odd number of its own, modulo 2^32.

    Changing any single word changes the sum (an odd factor is invertible); integer sums are the same in
    any order, so the digest does not depend on how the array lies on the devices.
    """
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
    return jnp.sum(words * (2 * jnp.uint32(2654435761) * place + 1), dtype=jnp.uint32)


def digests(tree: Any) -> list[int]:
    """The digest of each array of a tree."""
    return [int(value) for value in jax.device_get([digest(leaf) for leaf in jax.tree.leaves(tree)])]


class Checkpoints:
    """The checkpoints in one folder: the newest `keep_last`, and every `keep_every`-th step for good.

    A checkpoint holds named trees of arrays, each of which can be read without the others, and `about`, a
    small dict of JSON values.
    """

    def __init__(self, folder: Path, keep_last: int | None = None, keep_every: int | None = None) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every, create=False)
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, newest first."""
        return sorted(self._manager.all_steps(read=True), reverse=True)

    def save(self, step: int, trees: dict[str, Any], about: dict[str, Any]) -> None:
        """Begin to save; returns once the arrays are copied off the devices, so they may be donated."""
        sums = {name: digests(tree) for name, tree in trees.items()}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave({**about, "digest": sums}), **items))

    def wait(self) -> None:
        """Block until what was begun is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """The trees that shapes(about) names, with its shapes, dtypes and shardings, and `about` itself.

        Raises CheckpointError where one of them cannot be read or is not what was written.
        """
        try:
            about = self.about(step)
            like = shapes(about)
            trees = self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        except Exception as error:  # TensorStore, JSON and file errors: all mean that it cannot be read
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"checkpoint {step} cannot be read ({type(error).__name__}: {reason})") from error
        for name, tree in trees.items():
            if digests(tree) != about["digest"][name]:
                raise CheckpointError(f"checkpoint {step} is damaged: {name} is not what was written")
        return {**trees, "about": about}

    def about(self, step: int) -> dict[str, Any]:
        """The `about` of a step."""
        return self._restore(step, about=ocp.args.JsonRestore())["about"]

    def _restore(self, step: int, **items: Any) -> dict[str, Any]:
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def restore_newest(
        self, shapes: Callable[[dict[str, Any]], dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[int, dict[str, Any]] | None:
        """(step, what `restore` gives) of the newest checkpoint that is whole; None where there is none.

        A broken one is reported and skipped.  Raises CheckpointError where all are broken.
        """
        problems = []
        for step in self.steps():
            try:
                return step, self.restore(step, shapes)
            except CheckpointError as error:
                problems.append(str(error))
                report(f"{error}; trying the one before it")
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} can be used: " + "; ".join(problems))
        return None

    def set_aside(self, after: int) -> None:
        """Move checkpoints of steps later than `after` to a folder `broken` beside them, out of the way."""
        self.wait()
        for step in self.steps():
            if step > after and jax.process_index() == 0:
                target = self.folder.parent / "broken" / f"{step}-{time.time_ns()}"
                target.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait for what was begun, and let go of the folder."""
        self._manager.close()
