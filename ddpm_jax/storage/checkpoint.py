"""Checkpoints of the training state, by Orbax: written in the background, verified when read.

Orbax writes a step into a temporary folder and renames it, so a killed save leaves no half checkpoint.
What it does not notice is a flipped bit, so a digest of every array is saved along with it, and one of the
description that they are in.

A save that fails, on a full disk for one, is told of in a line and costs no more than that checkpoint: its
files are removed, those before it stay, and training goes on to the next.
"""

import errno
import hashlib
import itertools
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from ddpm_jax.errors import RunError
from ddpm_jax.storage.errors import hush_orbax, reason
from ddpm_jax.storage.paths import RunPath, failures, is_remote, move_tree, remove_tree

hush_orbax()

REMEDY = "Free some space, or mend what is wrong; the same command goes on from there."
# Seconds in which all processes find the same mistake in a checkpoint.
MEETING = 60
_mistakes = itertools.count()


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
    # One at a time: of arrays that are cut each is a sum over devices, and CPUs lose their way among many of these.
    return [int(jax.device_get(digest(leaf))) for leaf in jax.tree.leaves(tree)]


def seal(about: dict[str, Any]) -> str:
    """The digest of a description, as it will be read back from JSON."""
    content = json.loads(json.dumps({name: value for name, value in about.items() if name != "seal"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints in one folder: the newest `keep_last`, and every `keep_every`-th step for good.

    A checkpoint holds named trees of arrays, each of which can be read without the others, and `about`, a
    small dict of JSON values.  `report` takes the line that tells of a save that failed; `noun` is what it calls
    a checkpoint, and `failed` what it says of the step that is to be saved next.
    """

    def __init__(
        self,
        folder: RunPath,
        keep_last: int | None = None,
        keep_every: int | None = None,
        noun: str = "checkpoint",
        failed: str = "training goes on and tries again at step {}",
    ) -> None:
        self.folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._noun, self._failed = noun, failed
        self.report: Callable[[str], None] = warnings.warn
        self._under_way: tuple[int, int | None] | None = None  # the step being saved, and the one to be saved next
        self._failure, self._failed_step = "", None  # why the last save that failed did, and of which step it was
        self._last_try = False  # whether an error will tell of the next failure
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep_last,
            keep_period=self._keep_every,
            create=False,
            # Two managers may save at once: their processes wait for one another under different names.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name),
        )
        folder = self.folder if is_remote(self.folder) else Path(self.folder).absolute()
        return ocp.CheckpointManager(folder, options=options)

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, newest first."""
        return sorted(self._manager.all_steps(read=True), reverse=True)

    def unfinished(self) -> list[int]:
        """The steps that have a folder which Orbax takes for no finished checkpoint."""
        return sorted(steps_in(self.folder) - set(self.steps()), reverse=True)

    def save(self, step: int, trees: dict[str, Any], about: dict[str, Any], next_step: int | None = None) -> None:
        """Begin to save; returns once the arrays are copied off the devices, so they may be donated.

        next_step: when the next save is due, for the report of a failure, which comes from here or from a later
        call.  Raises RunError for a failure only where there are several processes, which it leaves out of step.
        """
        self.wait()
        about = {**about, "digest": {name: digests(tree) for name, tree in trees.items()}}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        sealed = ocp.args.JsonSave({**about, "seal": seal(about)})
        self._under_way = (step, next_step)
        try:
            if not (is_remote(self.folder) or self.folder.parent.exists()):  # Orbax would make another in its place
                raise FileNotFoundError(errno.ENOENT, "", str(self.folder.parent))
            self._manager.save(step, args=ocp.args.Composite(about=sealed, **items))
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Block until what was begun is on disk, or has failed, which is reported."""
        if self._under_way is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of Orbax, TensorStore or the file system, from the background
            self._fail(error)
        self._under_way = None

    def poll(self) -> None:
        """Report a failure in the background as soon as there is one, without waiting."""
        if jax.process_count() == 1 and self._under_way and not self._manager.is_saving_in_progress():
            self.wait()

    def finish(self, step: int, trees: dict[str, Any], about: dict[str, Any]) -> None:
        """Wait; the checkpoint of `step`, the last, is on disk then.

        Raises RunError where it could not be written at the second attempt either.
        """
        self.wait()
        for is_second in (False, True):
            if step in self.steps():
                return
            if not is_second and self._failed_step == step:
                continue  # training has made the first attempt
            self._last_try = is_second
            with suppress(failures(self.folder)):
                self.folder.mkdir(parents=True, exist_ok=True)
            self.save(step, trees, about)
            self.wait()
        if step not in self.steps():
            raise RunError(f"{self._what_failed(step)}. {REMEDY}")

    def _fail(self, error: Exception) -> None:
        """Report that the save under way failed, and leave the folder as it was before it."""
        assert self._under_way is not None
        (step, next_step), self._under_way = self._under_way, None
        self._failure, self._failed_step = reason(error), step
        if jax.process_count() > 1:  # to begin anew would wait for the others, which may know of no error
            raise RunError(f"{self._what_failed(step)}. {REMEDY}")
        self._reopen()
        with suppress(failures(self.folder)):
            self.remove_leftovers()
            if is_remote(self.folder) and step in self.unfinished():
                remove_tree(self.folder / str(step))
        if step in self.steps():  # it was the removal of an older one that failed
            self.report(self._what_failed(step))
        elif next_step:
            self.report(f"{self._what_failed(step)}; {self._failed.format(next_step)}; free some space")
        elif not self._last_try:
            self.report(f"{self._what_failed(step)}; it will be tried once more")

    def _what_failed(self, step: int) -> str:
        """And why, and what there is instead."""
        newest = next(iter(self.steps()), None)
        if newest == step:
            return f"the {self._noun} of step {step} is written, but there was an error after that: {self._failure}"
        intact = f"There is no {self._noun} yet" if newest is None else f"The {self._noun} of step {newest} is intact"
        return f"the {self._noun} of step {step} cannot be written to {self.folder} ({self._failure}). {intact}"

    def _reopen(self) -> None:
        """Begin anew: after an error Orbax may hold others, which its next save would raise, and a wrong list of steps.

        Closing waits for what is still being written, and raises one of these errors at a time.
        """
        for _ in range(5):
            try:
                self._manager.close()
                break
            except Exception as error:
                self._failure = self._failure or reason(error)
        self._manager = self._open()

    def remove_leftovers(self) -> None:
        """Remove what saves that failed or were killed have written.  Only who holds the run's lock may."""
        if jax.process_index() > 0:
            return
        for _ in range(20):  # other writes of a save that failed may go on for a moment
            found = list(self.folder.glob("*.orbax-checkpoint-tmp*"))
            for entry in found:
                remove_tree(entry)
            if not found:
                return
            time.sleep(0.05)

    def check_space(self, state: Any) -> None:
        """Report where the disk has too little space for the checkpoints of a state that will be kept at a time."""
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        count = max((self._keep_last or 0) + 1 - len(self.steps()), 1)
        if is_remote(self.folder) or jax.process_index() > 0:
            return
        with suppress(OSError):
            free = shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent).free
            if free < count * size:
                self.report(
                    f"{self.folder} has {free / 1e9:.3g} GB of free space; the {count} checkpoints to come (one more "
                    f"than are kept, while it is written) take {count * size / 1e9:.3g} GB"
                )

    def restore(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """The trees that shapes(about) names, with its shapes, dtypes and shardings, and `about` itself.

        Raises CheckpointError where one of them cannot be read or is not what was written; where only some of many
        processes find it so, the others wait inside Orbax, and they raise RunError.
        """
        try:
            return self._read(step, shapes)
        except CheckpointError as error:
            if jax.process_count() > 1 and not _meet(f"{self.folder} {step} {next(_mistakes)}"):
                raise RunError(
                    f"{error}, as process {jax.process_index()} sees it and others do not. Move "
                    f"{self.folder / str(step)} elsewhere; the same command goes on from the one before it."
                ) from error
            raise

    def _read(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """`restore`, which raises CheckpointError on the process that finds a mistake."""
        if step in self.unfinished():
            raise CheckpointError(f"checkpoint {step} is not finished, or has lost the file that says so")
        try:
            about = self._restore(step, about=ocp.args.JsonRestore())["about"]
            if about.get("seal", seal(about)) != seal(about):
                raise CheckpointError(f"checkpoint {step} is damaged: its description is not what was written")
            like = shapes(about)
            trees = self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore, JSON and file errors: all mean that it cannot be read
            raise CheckpointError(f"checkpoint {step} cannot be read ({reason(error)})") from error
        for name, tree in trees.items():
            if digests(tree) != about["digest"][name]:
                raise CheckpointError(f"checkpoint {step} is damaged: {name} is not what was written")
        return {**trees, "about": about}

    def _restore(self, step: int, **items: Any) -> dict[str, Any]:
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def restore_newest(
        self, shapes: Callable[[dict[str, Any]], dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[int, dict[str, Any]] | None:
        """(step, what `restore` gives) of the newest checkpoint that is whole; None where there is none.

        A broken one is reported and skipped, and so is a first one that was never finished.  Raises CheckpointError
        where all are broken.
        """
        finished, unfinished = self.steps(), self.unfinished()
        if not finished and len(unfinished) == 1:  # in an object store: of a run that was killed in its first save
            report(f"checkpoint {unfinished[0]} is not finished, and there is none before it")
            return None
        problems, steps = [], sorted({*finished, *unfinished}, reverse=True)
        for step in steps:
            restored, problem = None, f"checkpoint {step} cannot be read by another process"
            try:
                restored = self.restore(step, shapes)
            except CheckpointError as error:
                problem = str(error)
            if _on_all(restored is not None):
                assert restored is not None
                return step, restored
            problems.append(problem)
            if step != steps[-1]:
                report(f"{problem}; trying the one before it")
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} can be used: " + "; ".join(problems))
        return None

    def set_aside(self, after: int, replace: bool = False) -> None:
        """Move checkpoints of steps later than `after` to a folder `broken` beside them, out of the way.

        replace: under the name of their folder and the step, so that only the newest of each step stays there.
        """
        self.wait()
        broken = self.folder.parent / "broken"
        for step in steps_in(self.folder):
            if step > after and jax.process_index() == 0:
                target = broken / (f"{self.folder.name}-{step}" if replace else f"{step}-{time.time_ns()}")
                remove_tree(target)
                move_tree(self.folder / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait for what was begun, and let go of the folder."""
        self.wait()
        self._manager.close()


def steps_in(folder: RunPath) -> set[int]:
    """The steps that have a folder, whatever it holds."""
    return {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()} if folder.exists() else set()


def _meet(name: str) -> bool:
    """Whether every process comes here within a while."""
    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * MEETING)
    except Exception:
        return False
    return True


def _on_all(value: bool) -> bool:
    """Whether it is so on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value
