"""How far a long task is: a bar on a terminal, a line now and then elsewhere."""

import time
from threading import Event, Thread
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddpm_jax.storage.log import format_time

# Seconds between lines where there is no terminal.
PAUSE = 20.0


class ProgressBar:
    """`with ProgressBar("drawing", total, done) as waiting: ... waiting.reached(count)`, on stderr.

    Where there is no terminal, a line every 20 seconds, also while one part of the task takes longer than that.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._start = what, total, done
        self._console = Console(stderr=True, quiet=quiet)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, completed=done)
        self._began, self._reached, self._over = time.monotonic(), (done, time.monotonic()), Event()

    def reached(self, count: int) -> None:
        """So many are done."""
        self._reached = count, time.monotonic()
        self._bar.update(self._task, completed=count)

    def _tell(self) -> None:
        """Print a line now and then, until the task is over."""
        while not self._over.wait(PAUSE):
            count, since = self._reached
            text = f"{self._what}: {count:,} of {self._total:,}"
            if count > self._start:
                left = (self._total - count) / (count - self._start) * (since - self._began)
                text += f", {format_time(left)} left"
            else:
                text += f", {format_time(time.monotonic() - self._began)} so far"
            self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        if not (self._console.is_terminal or self._console.quiet):
            Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._bar.stop()
