"""Files that grow line by line and lose no line: if the disk is full, lines wait in memory.

Object stores cannot append: there, a file is kept in memory and written whole at each flush.
"""

import errno
import os
from collections.abc import Callable
from typing import Any

from ddpm_jax.storage.errors import error_summary
from ddpm_jax.storage.paths import RunPath, is_remote, write_bytes


class WriteFailures:
    """Reports the first failed write of each file, and the first that succeeds again."""

    def __init__(self, report: Callable[[str], None], errors: type[Exception] = OSError) -> None:
        """Start with no failures.

        Args:
            report: called with each line.
            errors: the errors of a failed write, `paths.io_errors` of the folder.
        """
        self._report, self._errors, self._failing = report, errors, set()

    def attempt(self, what: str, write: Callable[[], Any], meanwhile: str) -> bool:
        """Write, and report a failure instead of raising it.

        Args:
            what: the name of the file in messages.
            write: writes it.
            meanwhile: how training continues after a failure, the end of the message.

        Returns:
            Whether `write` succeeded.
        """
        try:
            write()
        except self._errors as error:
            if what not in self._failing:
                self._failing.add(what)
                self._report(f"{what} cannot be written ({error_summary(error)}); training continues, {meanwhile}")
            return False
        if what in self._failing:
            self._failing.discard(what)
            self._report(f"{what} can be written again")
        return True


class AppendFile:
    """A file to append to.  It starts with `content`; anything else in the file on disk is removed."""

    def __init__(self, path: RunPath, content: bytes, failures: WriteFailures, meanwhile: str) -> None:
        self._path, self._failures, self._meanwhile = path, failures, meanwhile
        self._remote = is_remote(path)
        self._size = 0  # bytes on disk for certain
        self._waiting = content  # bytes to write; in an object store, the whole file
        if not self._remote:
            self._attempt(self._adopt)

    def append(self, content: bytes) -> None:
        """Add to the waiting bytes."""
        self._waiting += content

    def write(self) -> None:
        """Write the waiting bytes if that is cheap: to a local file."""
        if not self._remote:
            self.flush()

    def flush(self) -> None:
        """Write the waiting bytes; they stay waiting if the write fails."""
        if len(self._waiting) > (self._size if self._remote else 0):
            self._attempt(self._write)

    def _attempt(self, write: Callable[[], None]) -> None:
        self._failures.attempt(str(self._path), write, self._meanwhile)

    def _adopt(self) -> None:
        """Make the file equal to `content`; if it only needs to be cut, that works on a full disk."""
        on_disk = self._path.read_bytes() if self._path.exists() else b""
        if on_disk != self._waiting and on_disk.startswith(self._waiting):
            os.truncate(self._path, len(self._waiting))
        elif on_disk != self._waiting:
            write_bytes(self._path, self._waiting)
        self._size, self._waiting = len(self._waiting), b""

    def _write(self) -> None:
        if self._remote:
            write_bytes(self._path, self._waiting)
            self._size = len(self._waiting)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab", buffering=0) as file:
            file.truncate(min(self._size, file.tell()))  # removes half a line, written when the disk became full
            written = file.write(self._waiting)
            if written < len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size = file.tell()
        self._waiting = b""
