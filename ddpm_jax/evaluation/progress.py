"""How far a long task is: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddpm_jax.training.log import format_time

# Seconds between lines where there is no terminal.
PAUSE = 20.0


class Waiting:
    """`with Waiting("drawing", total, done) as waiting: ... waiting.reached(count)`, on stderr."""

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
        self._began = self._spoke = time.monotonic()

    def reached(self, count: int) -> None:
        """So many are done."""
        self._bar.update(self._task, completed=count)
        now = time.monotonic()
        if self._console.is_terminal or now - self._spoke < PAUSE or count >= self._total:
            return
        self._spoke = now
        left = (now - self._began) / (count - self._start) * (self._total - count)
        text = f"{self._what}: {count:,} of {self._total:,}, {format_time(left)} left"
        self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Waiting":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
