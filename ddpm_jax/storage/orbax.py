"""A folder of checkpoints, which Orbax writes in the background.

Orbax writes a step to a temporary folder and renames it, so a save that was killed leaves no half checkpoint.  This
file reads and writes; `integrity` notices damage, and `checkpoint` decides what happens after an error.
"""

import errno
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.storage import errors, integrity, paths, quiet


class OrbaxFolder:
    """The checkpoints in one folder: the newest `keep_last`, and every `keep_every`-th step for good.

    A checkpoint holds named trees of arrays, each of which can be read without the others, and `about`, a small dict
    of JSON values.  Messages of Orbax are hidden until `close`, as the errors are reported here.
    """

    def __init__(self, folder: paths.RunPath, keep_last: int | None = None, keep_every: int | None = None) -> None:
        self.folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._had_errors, self._quiet = False, ExitStack()
        self._quiet.enter_context(quiet.quiet_orbax())
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep_last,
            keep_period=self._keep_every,
            create=False,
            # Made in the background, a folder that cannot be made leaves threads that wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            # Two managers may save at once: their processes wait for one another under different names.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name),
        )
        folder = self.folder if paths.is_remote(self.folder) else Path(self.folder).absolute()
        return ocp.CheckpointManager(folder, options=options)

    def reopen(self) -> None:
        """Replace Orbax's manager after an error.

        The old manager may hold more errors, which its next save would raise, and a wrong list of steps.  Closing it
        waits for what is being written, and raises one of these errors at a time.
        """
        for _ in range(5):
            with suppress(Exception):
                self._manager.close()
                break
        self._manager = self._open()

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, newest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def unfinished(self) -> list[int]:
        """The steps that have a folder which Orbax does not accept as a finished checkpoint."""
        return sorted(steps_in(self.folder) - set(self.steps()), reverse=True)

    def write(self, step: int, trees: dict[str, Any], about: dict[str, Any]) -> None:
        """Begin to save; returns once the arrays are copied off the devices, so they may be donated.

        Args:
            step: the step, whose folder does not exist yet.
            trees: the trees of arrays, by name.
            about: the description.

        Raises:
            Exception: of Orbax, TensorStore or the file system; some come from the background, later.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        about = integrity.sealed(about, trees)
        if not (paths.is_remote(self.folder) or self.folder.parent.exists()):  # Orbax would create it
            raise FileNotFoundError(errno.ENOENT, "", str(self.folder.parent))
        self._manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave(about), **items))

    def read(self, step: int, shapes: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """The trees of a checkpoint, and `about`.

        Args:
            step: the step.
            shapes: maps `about` to {name: tree of shapes, dtypes and shardings} of the trees to read.

        Raises:
            CheckpointError: the checkpoint cannot be read, or is not what was written.
        """
        if step in self.unfinished():
            raise errors.CheckpointError(f"checkpoint {step} is not finished, or has lost the file that says so")
        try:
            about = self._restore(step, about=ocp.args.JsonRestore())["about"]
            integrity.check_description(step, about)
            like = shapes(about)
            trees = self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in like.items()})
        except errors.CheckpointError:
            raise
        except Exception as error:  # of TensorStore, JSON or the file system
            self._had_errors = True
            raise errors.CheckpointError(f"checkpoint {step} cannot be read ({errors.error_summary(error)})") from error
        integrity.check_trees(step, about, trees)
        return {**trees, "about": about}

    def _restore(self, step: int, **items: Any) -> dict[str, Any]:
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def remove_leftovers(self) -> None:
        """Remove what saves that failed or were killed have written.  Only the holder of the run's lock may."""
        if jax.process_index() > 0:
            return
        for _ in range(20):  # threads of a save that failed may write for a moment longer
            found = list(self.folder.glob("*.orbax-checkpoint-tmp*"))
            for entry in found:
                paths.remove_tree(entry)
            if not found:
                return
            time.sleep(0.05)

    def move_aside(self, after: int, replace: bool) -> None:
        """Move the checkpoints of later steps to the folder `broken` beside this one.

        Args:
            after: the last step whose checkpoint stays.
            replace: whether to name them by their folder and step, so that only the newest of each step is kept there.
        """
        broken = self.folder.parent / "broken"
        for step in steps_in(self.folder):
            if step > after and jax.process_index() == 0:
                target = broken / (f"{self.folder.name}-{step}" if replace else f"{step}-{time.time_ns()}")
                paths.remove_tree(target)
                paths.move_tree(self.folder / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Close Orbax's manager, and show its messages again."""
        self._manager.close()
        if self._had_errors:
            gc.collect()  # Python reports the coroutines that Orbax dropped when it frees them
        self._quiet.close()


def steps_in(folder: paths.RunPath) -> set[int]:
    """The steps that have a folder, whatever it holds."""
    return {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()} if folder.exists() else set()
