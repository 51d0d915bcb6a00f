"""The progress of a long task on stderr: a bar on a terminal, or else lines from time to time.

Training shows its progress with `storage.log.Log` instead: its bar belongs to a log of metrics, pictures and messages.
"""

import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

from rich.console import Console

from ddpm_jax.storage.log import format_time, progress_on

__all__ = ["ProgressBar"]

# Seconds between two lines.
PAUSE = 20.0


class ProgressBar:
    """`with ProgressBar("drawing", total, done) as progress: ... progress.reached(count)`.

    Without a terminal, it prints a line every 20 seconds, even if one part of the task takes longer than that.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._start = what, total, done
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = progress_on(self._console)
        self._task = self._bar.add_task(what, total=total, completed=done, shown="")
        self._began = time.monotonic()
        self._reached, self._over = (done, self._began), Event()

    def steps(self, size: int) -> Iterator[int]:
        """The numbers of the first parts of the steps to come, of `size` parts each."""
        for first in range(self._start, self._total, size):
            yield first
            self.reached(min(first + size, self._total))

    def reached(self, count: int) -> None:
        """Show that `count` parts of the task are done."""
        self._reached = count, time.monotonic()
        self._bar.update(self._task, completed=count)

    def _print_lines(self) -> None:
        while not self._over.wait(PAUSE):
            count, since = self._reached
            spent = f"{format_time(time.monotonic() - self._began)} so far"
            if count > self._start:
                left = (self._total - count) / (count - self._start) * (since - self._began)
                spent = f"{format_time(left)} left"
            self._console.print(f"{self._what}: {count:,} of {self._total:,}, {spent}", highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        if not (self._console.is_terminal or self._console.quiet):
            Thread(target=self._print_lines, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._bar.stop()
