"""What a training run tells: one progress bar, JSON lines, TensorBoard events, pictures.

On a terminal nothing scrolls by; where the output is a file there is a line for each log entry.
"""

import json
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddpm_jax.data.images import grid, save_png

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
    will be written again.  A `quiet` log writes and shows nothing: of many processes, one tells.
    """

    def __init__(self, folder: Path, start: int, num_steps: int, quiet: bool = False) -> None:
        from tensorboardX import SummaryWriter

        self._folder, self._num_steps, self._quiet = folder, num_steps, quiet
        self._metrics = folder / "metrics.jsonl"
        if not quiet:
            self._forget(after=start)
        events = str(folder / "tensorboard")
        self._events = SummaryWriter(events, purge_step=start + 1, flush_secs=3600, write_to_disk=not quiet)
        self._console = Console(stderr=True, quiet=quiet)
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
        if not (quiet or self._console.is_terminal):
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

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record the metrics after `step` steps, which are those of the steps since the last record.

        values: any numbers, with `loss`, `images_per_second` and `steps_per_second` among them.
        """
        if self._quiet:
            return
        with self._metrics.open("a") as file:
            file.write(
                json.dumps({"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}) + "\n"
            )
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        shown = f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"
        self._progress.update(self._task, shown=shown)
        if not self._console.is_terminal:
            left = (self._num_steps - step) / max(values["steps_per_second"], 1e-9)
            self.say(f"step {step}/{self._num_steps}  {shown}  {format_time(left)} left")

    def images(self, step: int, pixels: Any) -> Path:
        """Save uint8 images [n, height, width, channels] as one picture; returns its path."""
        path = self.picture_path(step)
        if self._quiet:
            return path
        path.parent.mkdir(exist_ok=True)
        picture = grid(np.asarray(pixels))
        save_png(path, picture)
        self._events.add_image("samples", picture, step, dataformats="HWC")
        return path

    def picture_path(self, step: int) -> Path:
        """Where the picture of a step is saved."""
        return self._folder / "samples" / f"{step:08d}.png"

    def flush(self) -> None:
        """Put everything on disk, so that a checkpoint never has more steps than its log."""
        self._events.flush()

    def close(self) -> None:
        """End the progress bar and the event file."""
        self._closed.set()
        self._progress.stop()
        self._events.close()

    def _heartbeat(self) -> None:
        """Where lines are all there is to see: one after each minute without any, so that waiting is not silence."""
        while not self._closed.wait(max(self._spoke + HEARTBEAT - time.monotonic(), 0.1)):
            if time.monotonic() - self._spoke >= HEARTBEAT:
                task = self._progress.tasks[0]
                self.say(f"step {task.completed:.0f}/{self._num_steps}  {task.fields['shown']} ...")

    def _forget(self, after: int) -> None:
        if not self._metrics.exists():
            return
        kept = []
        for line in self._metrics.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the run died
            if entry["step"] <= after:
                kept.append(line + "\n")
        part = self._metrics.with_suffix(".part")
        part.write_text("".join(kept))
        part.replace(self._metrics)
