"""The output of a training: a progress bar, JSON lines, TensorBoard events and pictures.

A terminal shows one progress bar; if stderr is a file, it gets a line for each log entry.
"""

import json
import math
import time
from threading import Event, Thread
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ddpm_jax.storage import append_file, pictures, tensorboard
from ddpm_jax.storage.paths import RunPath, io_errors

# Seconds of silence after which a line says that training is alive.
HEARTBEAT = 60.0


def format_time(seconds: float) -> str:
    """Seconds as 45s, 3m20s, 5h07m or 2d03h."""
    seconds = round(seconds)
    for big, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{big}{seconds % size // part:02d}{small}"
    return f"{seconds}s"


def progress_on(console: Console) -> Progress:
    """A progress bar; tasks have a field `shown`, a text after the count."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[shown]}", TimeElapsedColumn())
    options = {"console": console, "disable": not console.is_terminal, "transient": True}
    return Progress(*columns, "left", TimeRemainingColumn(), **options)


class Log:
    """Writes metrics.jsonl, tensorboard/ and samples/ in a run's folder, and shows progress on stderr.

    A write that fails is reported once and does not stop training.
    """

    def __init__(self, folder: RunPath, start: int, num_steps: int, quiet: bool = False) -> None:
        """Open the log of a run.

        Args:
            folder: the run's folder.
            start: the step to start from.  Entries of later steps, of a run killed after its last checkpoint, are
                dropped: they will be written again.
            num_steps: the last step.
            quiet: whether to write and show nothing; true for all but the first of several processes.
        """
        self._folder, self._num_steps, self._quiet = folder, num_steps, quiet
        self._console = Console(stderr=True, quiet=quiet)
        self._failures = append_file.WriteFailures(self.say, io_errors(folder))
        self._progress = progress_on(self._console)
        self._task = self._progress.add_task("training", total=num_steps, completed=start, shown="compiling")
        self._progress.start()
        self._spoke, self._closed = time.monotonic(), Event()
        if not quiet:
            path = folder / "metrics.jsonl"
            kept = entries_until(path, start, self._failures)
            meanwhile = "its lines are kept and written once it works again"
            self._metrics = append_file.AppendFile(path, kept, self._failures, meanwhile)
            self._events = tensorboard.Events(folder / "tensorboard", start, self._failures)
            if not self._console.is_terminal:
                Thread(target=self._heartbeat, daemon=True).start()

    def say(self, text: str) -> None:
        """Show one line."""
        self._spoke = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step)

    def doing(self, what: str) -> None:
        """Show an activity that takes a while, such as drawing samples."""
        self._progress.update(self._task, shown=what)
        if not self._console.is_terminal:
            self._say_state()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record the metrics of the steps since the last record.

        Args:
            step: the last of these steps.
            values: numbers by name; `loss`, and `steps_per_second` and `images_per_second` if they are known.
        """
        if self._quiet:
            return
        entry = {"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        self._metrics.append(f"{json.dumps(entry)}\n".encode())
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._metrics.write()
        self._events.write()
        shown = f"loss {values['loss']:.4f}"
        if "images_per_second" in values:
            shown += f"  {values['images_per_second']:.0f} images/s"
        self._progress.update(self._task, shown=shown)
        if not self._console.is_terminal:
            if rate := values.get("steps_per_second"):
                shown += f"  {format_time((self._num_steps - step) / rate)} left"
            self.say(f"step {step}/{self._num_steps}  {shown}")

    def images(self, step: int, pixels: Any, concern: str | None = None) -> RunPath:
        """Save images as one picture.

        Args:
            step: the step at which they were drawn.
            pixels: uint8 [n, height, width, channels].
            concern: why they may look worse than they should; None for no reason.

        Returns:
            The path of the picture.
        """
        path = self.picture_path(step)
        if concern:
            self.say(f"{path}: {concern}, which shows in these samples")
        if self._quiet:
            return path
        picture = pictures.grid(np.asarray(pixels))
        self._failures.attempt(f"the picture {path}", lambda: pictures.save_png(path, picture), "without it")
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  samples: {path}")
        self._events.add_image("samples", picture, step)
        self._events.write()
        return path

    def picture_path(self, step: int) -> RunPath:
        """The path of the picture of a step."""
        return self._folder / "samples" / f"{step:08d}.png"

    def flush(self) -> None:
        """Write everything to disk, so that a checkpoint never has more steps than its log."""
        if not self._quiet:
            self._metrics.flush()
            self._events.flush()

    def close(self) -> None:
        """Write what is waiting, and end the progress bar."""
        self._closed.set()
        self.flush()
        self._progress.stop()

    def _heartbeat(self) -> None:
        """Without a progress bar: show the state after each minute of silence."""
        while not self._closed.wait(max(self._spoke + HEARTBEAT - time.monotonic(), 0.1)):
            if time.monotonic() - self._spoke >= HEARTBEAT:
                self._say_state()

    def _say_state(self) -> None:
        task = self._progress.tasks[0]
        self.say(f"step {task.completed:.0f}/{self._num_steps}  {task.fields['shown']} ...")


def entries_until(path: RunPath, step: int, failures: append_file.WriteFailures) -> bytes:
    """The lines of a metrics.jsonl up to a step, without lines that are damaged, such as the last of a killed run.

    Args:
        path: the file, which need not exist.
        step: the last step.
        failures: reports an error in reading.
    """
    lines: list[bytes] = []

    def read() -> None:
        lines.extend(path.read_bytes().splitlines(keepends=True) if path.exists() else [])

    failures.attempt(f"the old content of {path}", read, "without it")
    return b"".join(line for line in lines if _step_of(line) <= step)


def _step_of(line: bytes) -> float:
    """The step of a whole line of metrics; infinity for anything else."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return float(step) if isinstance(step, int) else math.inf
