"""What a training run tells: one progress bar, JSON lines, TensorBoard events, pictures.

On a terminal nothing scrolls by; where the output is a file there is a line for each log entry.
"""

import json
import math
import time
from threading import Event, Thread
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddpm_jax.storage.append_file import AppendFile, WriteFailures
from ddpm_jax.storage.paths import RunPath, io_errors
from ddpm_jax.storage.pictures import grid, save_png
from ddpm_jax.storage.tensorboard import Events

# Seconds without a line, after which there is one.
HEARTBEAT = 60.0


def format_time(seconds: float) -> str:
    """Seconds as 45s, 3m20s, 5h07m or 2d03h."""
    seconds = round(seconds)
    for big, small, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if seconds >= size:
            return f"{seconds // size}{big}{seconds % size // (size // {'d': 24, 'h': 60, 'm': 60}[big]):02d}{small}"
    return f"{seconds}s"


class Log:
    """Writes metrics.jsonl, tensorboard/ and samples/ in a run's folder, and shows progress on stderr.

    Entries of steps after `start`, left by a run that died after its last checkpoint, are dropped: they
    will be written again.  What cannot be written is told of once and stops nothing.  A `quiet` log writes and
    shows nothing: of many processes, one tells.
    """

    def __init__(self, folder: RunPath, start: int, num_steps: int, quiet: bool = False) -> None:
        self._folder, self._num_steps, self._quiet = folder, num_steps, quiet
        self._console = Console(stderr=True, quiet=quiet)
        self._failures = WriteFailures(self.say, io_errors(folder))
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=num_steps, completed=start, shown="compiling")
        self._progress.start()
        self._spoke, self._closed = time.monotonic(), Event()
        if not quiet:
            path = folder / "metrics.jsonl"
            kept = entries_until(path, start, self._failures)
            self._metrics = AppendFile(path, kept, self._failures, "its lines are kept and written once it works again")
            self._events = Events(folder / "tensorboard", start, self._failures)
            if not self._console.is_terminal:
                Thread(target=self._heartbeat, daemon=True).start()

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self._spoke = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step)

    def doing(self, what: str) -> None:
        """Show what takes a while beside training."""
        self._progress.update(self._task, shown=what)
        if not self._console.is_terminal:
            self._say_state()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record the metrics after `step` steps, which are those of the steps since the last record.

        values: any numbers, `loss` among them; where they are known, `steps_per_second` and `images_per_second`.
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
        """Save uint8 images [n, height, width, channels] as one picture; returns its path.

        concern: why they may look worse than they should, for the person who looks at it.
        """
        path = self.picture_path(step)
        if concern:
            self.say(f"{path}: {concern}, which shows in these samples")
        if self._quiet:
            return path
        picture = grid(np.asarray(pixels))
        self._failures.attempt(f"the picture {path}", lambda: save_png(path, picture), "without it")
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  samples: {path}")
        self._events.add_image("samples", picture, step)
        self._events.write()
        return path

    def picture_path(self, step: int) -> RunPath:
        """Where the picture of a step is saved."""
        return self._folder / "samples" / f"{step:08d}.png"

    def flush(self) -> None:
        """Put everything on disk, so that a checkpoint never has more steps than its log."""
        if not self._quiet:
            self._metrics.flush()
            self._events.flush()

    def close(self) -> None:
        """Write what waits, and end the progress bar."""
        self._closed.set()
        self.flush()
        self._progress.stop()

    def _heartbeat(self) -> None:
        """Where lines are all there is to see: one after each minute without any, so that waiting is not silence."""
        while not self._closed.wait(max(self._spoke + HEARTBEAT - time.monotonic(), 0.1)):
            if time.monotonic() - self._spoke >= HEARTBEAT:
                self._say_state()

    def _say_state(self) -> None:
        task = self._progress.tasks[0]
        self.say(f"step {task.completed:.0f}/{self._num_steps}  {task.fields['shown']} ...")


def entries_until(path: RunPath, step: int, failures: WriteFailures) -> bytes:
    """The lines of a metrics.jsonl up to a step; none where there is no such file.

    Lines that cannot be read are left out, as that is which was being written when the run died.
    """
    content = b""

    def read() -> None:
        nonlocal content
        content = path.read_bytes() if path.exists() else b""

    failures.attempt(f"what {path} held", read, "without it")
    return b"".join(line for line in content.splitlines(keepends=True) if _step_of(line) <= step)


def _step_of(line: bytes) -> float:
    """The step of a whole line of metrics; infinity for anything else."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return float(step) if isinstance(step, int) else math.inf
