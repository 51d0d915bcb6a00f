"""Files that grow line by line and lose none: on a full disk lines wait in memory until they can be written.

In an object store nothing can be appended to: there a file is kept in memory, and written whole at each flush.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.storage.errors import error_summary
from ddpm_jax.storage.paths import RunPath, is_remote, write_bytes


class WriteFailures:
    """Tells of what could not be written once, and once that it works again.

    failures: the errors that mean so, `paths.failures` of where it is written.
    """

    def __init__(self, report: Callable[[str], None], failures: type[Exception] = OSError) -> None:
        self._report, self._failures, self._failing = report, failures, set()

    def attempt(self, what: str, write: Callable[[], Any], meanwhile: str) -> bool:
        """Whether `write()` did what it should; a failure is told of rather than raised.

        meanwhile: what becomes of it, for the person who reads the message.
        """
        try:
            write()
        except self._failures as error:
            if what not in self._failing:
                self._failing.add(what)
                self._report(f"{what} cannot be written ({error_summary(error)}); training goes on, {meanwhile}")
            return False
        if what in self._failing:
            self._failing.discard(what)
            self._report(f"{what} can be written again")
        return True


class AppendFile:
    """A file to append to.  `content` is what stands in it already; anything else there goes."""

    def __init__(self, path: RunPath, content: bytes, failures: WriteFailures, meanwhile: str) -> None:
        self._path, self._failures, self._meanwhile = path, failures, meanwhile
        self._remote = is_remote(path)
        self._size = 0  # bytes that are known to be in the file
        self._waiting = content  # bytes to write; all there are, where the file must be written whole
        if not self._remote:
            self._attempt(self._adopt)

    def append(self, content: bytes) -> None:
        """Add to what waits."""
        self._waiting += content

    def write(self) -> None:
        """Write what waits, where that costs little: on this machine."""
        if not self._remote:
            self.flush()

    def flush(self) -> None:
        """Write what waits; what cannot be written goes on waiting."""
        if len(self._waiting) > (self._size if self._remote else 0):
            self._attempt(self._write)

    def _attempt(self, write: Callable[[], None]) -> None:
        self._failures.attempt(str(self._path), write, self._meanwhile)

    def _adopt(self) -> None:
        """Keep of the file what stands in `content` too; a full disk does not hinder that."""
        try:
            there = Path(self._path).read_bytes()
        except FileNotFoundError:
            there = b""
        if there != self._waiting and there.startswith(self._waiting):
            os.truncate(self._path, len(self._waiting))
        elif there != self._waiting:
            write_bytes(self._path, self._waiting)
        self._size, self._waiting = len(self._waiting), b""

    def _write(self) -> None:
        if self._remote:
            write_bytes(self._path, self._waiting)
            self._size = len(self._waiting)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab", buffering=0) as file:
            file.truncate(min(self._size, file.tell()))  # without the part of a line that a full disk took
            written = file.write(self._waiting)
            if written < len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size = file.tell()
        self._waiting = b""
