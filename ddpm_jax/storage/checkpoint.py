"""Checkpoints of the training state, and what happens when one cannot be written or read.

A save that fails, for example on a full disk, costs only that checkpoint: it is reported in one line, its files are
removed, earlier checkpoints stay, and training continues.  The last save is tried twice; then it is an error.  A
checkpoint that is damaged is reported, and the one before it is used.
"""

import itertools
import math
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.errors import RunError
from ddpm_jax.storage.errors import CheckpointError, error_summary
from ddpm_jax.storage.orbax import OrbaxFolder, steps_in
from ddpm_jax.storage.paths import RunPath, io_errors, is_remote, remove_tree

__all__ = ["Checkpoints", "steps_in"]

REMEDY = "Free some space, or fix the cause; the same command resumes the run."
# Seconds in which all processes find the same error in a checkpoint.
MEETING = 60
_errors = itertools.count()


class Checkpoints(OrbaxFolder):
    """The checkpoints in one folder, with the policy for errors.

    `report` is called with the line that describes a failed save.
    """

    def __init__(
        self,
        folder: RunPath,
        keep_last: int | None = None,
        keep_every: int | None = None,
        noun: str = "checkpoint",
        failed: str = "training continues and tries again at step {}",
    ) -> None:
        """Open the folder, which need not exist.

        Args:
            folder: the folder.
            keep_last: how many of the newest checkpoints to keep; None for all.
            keep_every: checkpoints of steps divisible by this are kept for good; None for none.
            noun: what messages call a checkpoint.
            failed: what messages say about the next step to be saved, after a failed save.
        """
        super().__init__(folder, keep_last, keep_every)
        self._noun, self._failed = noun, failed
        self.report: Callable[[str], None] = warnings.warn
        self._under_way: tuple[int, int | None] | None = None  # the step being saved, and the next one to be saved
        self._failure, self._failed_step = "", None  # the last failed save: why, and its step
        self._is_last_try = False  # whether the next failure becomes an error, which needs no report

    def save(self, step: int, trees: dict[str, Any], about: dict[str, Any], next_step: int | None = None) -> None:
        """Begin to save; returns once the arrays are copied off the devices, so they may be donated.

        Args:
            step: the step.
            trees: the trees of arrays, by name.
            about: the description, a small dict of JSON values.
            next_step: the step of the next save, for the report of a failure.

        Raises:
            RunError: the save failed and there are several processes, which may now differ.  Failures of a single
                process are reported, here or by a later call.
        """
        self.wait()
        self._under_way = (step, next_step)
        try:
            self.write(step, trees, about)
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Block until the save under way is on disk, or has failed and was reported."""
        if self._under_way is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of Orbax, TensorStore or the file system, from the background
            self._fail(error)
        self._under_way = None

    def poll(self) -> None:
        """Report a failure in the background if there is one, without waiting."""
        if jax.process_count() == 1 and self._under_way and not self._manager.is_saving_in_progress():
            self.wait()

    def finish(self, step: int, trees: dict[str, Any], about: dict[str, Any]) -> None:
        """Ensure that the last checkpoint is on disk.

        Args:
            step: the step, for which `save` may have been called.
            trees: the trees of arrays, by name.
            about: the description.

        Raises:
            RunError: the second attempt failed too.
        """
        self.wait()
        for is_second in (False, True):
            if step in self.steps():
                return
            if not is_second and self._failed_step == step:
                continue  # training has made the first attempt
            self._is_last_try = is_second
            with suppress(io_errors(self.folder)):
                self.folder.mkdir(parents=True, exist_ok=True)
            self.save(step, trees, about)
            self.wait()
        if step not in self.steps():
            raise RunError(f"{self._what_failed(step)}. {REMEDY}")

    def _fail(self, error: Exception) -> None:
        """Report that the save under way failed, and restore the folder to its state before the save."""
        assert self._under_way is not None
        (step, next_step), self._under_way = self._under_way, None
        self._failure, self._failed_step, self._had_errors = error_summary(error), step, True
        if jax.process_count() > 1:  # `reopen` would wait for the others, which may have had no error
            raise RunError(f"{self._what_failed(step)}. {REMEDY}")
        self.reopen()
        with suppress(io_errors(self.folder)):
            self.remove_leftovers()
            if is_remote(self.folder) and step in self.unfinished():
                remove_tree(self.folder / str(step))
        if step in self.steps():  # the removal of an older one failed
            self.report(self._what_failed(step))
        elif next_step:
            self.report(f"{self._what_failed(step)}; {self._failed.format(next_step)}; free some space")
        elif not self._is_last_try:
            self.report(f"{self._what_failed(step)}; it will be tried once more")

    def _what_failed(self, step: int) -> str:
        """What failed, why, and which checkpoint is intact."""
        newest = next(iter(self.steps()), None)
        if newest == step:
            return f"the {self._noun} of step {step} is written, but there was an error after that: {self._failure}"
        intact = f"There is no {self._noun} yet" if newest is None else f"The {self._noun} of step {newest} is intact"
        return f"the {self._noun} of step {step} cannot be written to {self.folder} ({self._failure}). {intact}"

    def check_space(self, state: Any) -> None:
        """Report if the disk has too little space for the checkpoints of a state that are kept at the same time."""
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        count = max((self._keep_last or 0) + 1 - len(self.steps()), 1)
        if is_remote(self.folder) or jax.process_index() > 0:
            return
        with suppress(OSError):
            free = shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent).free
            if free < count * size:
                to_come = f"the {count} checkpoints to come (one more than are kept, while it is written)"
                free, needed = f"{free / 1e9:.3g} GB of free space", f"{count * size / 1e9:.3g} GB"
                self.report(f"{self.folder} has {free}; {to_come} take {needed}")

    def restore(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """The trees of a checkpoint, and `about`.

        Args:
            step: the step.
            shapes: maps `about` to {name: tree of shapes, dtypes and shardings} of the trees to read.

        Raises:
            CheckpointError: the checkpoint cannot be read, or is not what was written.
            RunError: only some of several processes found an error; the others wait inside Orbax.
        """
        try:
            return self.read(step, shapes)
        except CheckpointError as error:
            if jax.process_count() > 1 and not _meet(f"{self.folder} {step} {next(_errors)}"):
                found = f"{error}, according to process {jax.process_index()} but not to the others"
                remedy = f"Move {self.folder / str(step)} elsewhere; the same command resumes from the one before it."
                raise RunError(f"{found}. {remedy}") from error
            raise

    def restore_newest(
        self, shapes: Callable[[dict[str, Any]], dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest valid checkpoint.

        Args:
            shapes: as for `restore`.
            report: called with a line for each damaged checkpoint that is skipped, and for a first one that was never
                finished.

        Returns:
            (step, what `restore` returns); None if there is no checkpoint.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        finished, unfinished = self.steps(), self.unfinished()
        if not finished and len(unfinished) == 1:  # in an object store, if the run was killed in its first save
            report(f"checkpoint {unfinished[0]} is not finished, and there is none before it")
            return None
        problems, steps = [], sorted({*finished, *unfinished}, reverse=True)
        for step in steps:
            restored, problem = None, f"checkpoint {step} cannot be read by another process"
            try:
                restored = self.restore(step, shapes)
            except CheckpointError as error:
                problem = str(error)
            if _on_all(restored is not None) and restored is not None:
                return step, restored
            problems.append(problem)
            if step != steps[-1]:
                report(f"{problem}; trying the one before it")
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} can be used: " + "; ".join(problems))
        return None

    def set_aside(self, after: int, replace: bool = False) -> None:
        """`move_aside`, after the save under way."""
        self.wait()
        self.move_aside(after, replace)

    def close(self) -> None:
        """Wait for the save under way, and release the folder."""
        self.wait()
        super().close()


def _meet(name: str) -> bool:
    """Whether every process arrives here within `MEETING` seconds."""
    with suppress(Exception):
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * MEETING)
        return True
    return False


def _on_all(value: bool) -> bool:
    """Whether the value is true on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value
