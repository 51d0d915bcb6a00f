"""One job at a time in a run's folder.

On a local or shared file system the lock is `flock` on RUN/lock, which the kernel releases when the process ends for
any reason, so no lock is stale.  Object stores have no locks; there, RUN/lock is a lease, which its holder rewrites
every two minutes and which expires after ten.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.errors import RunError
from ddpm_jax.storage.errors import error_summary
from ddpm_jax.storage.paths import RunPath, io_errors, is_remote

# Seconds between refreshes of a lease, and its age when it expires.
REFRESH, EXPIRY = 120, 600
# Seconds between writing a new lease and reading it, to detect another job that wrote one at the same time.
SETTLE = 2


@contextmanager
def locked(folder: RunPath, report: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the lock of a run's folder; of several processes the first one holds it for all.

    Args:
        folder: the folder, which exists.
        report: called with a line if the file system has no locks; the run then continues without one.

    Yields:
        A function to call before each write; it raises RunError if another job has taken over the lock.

    Raises:
        RunError: another job holds the lock, or it cannot be written.  Every process raises the same message.
    """
    held, refused = None, ""
    if jax.process_index() == 0:
        try:
            held = Lease(folder, report) if is_remote(folder) else FileLock(Path(folder), report)
        except RunError as error:
            refused = str(error)
        except io_errors(folder) as error:
            refused = f"{folder / 'lock'} cannot be written ({error_summary(error)}); a run needs a writable folder"
    refused = _as_first_says(refused)
    if refused:
        raise RunError(refused)
    try:
        yield lambda: held.check() if held is not None else None
    finally:
        if held is not None:
            held.release()


def _as_first_says(text: str) -> str:
    """The text that the first process passes, on every process; its first 4096 bytes."""
    if jax.process_count() == 1:
        return text
    content = np.frombuffer(text.encode()[:4096].ljust(4096, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(content)).rstrip(b"\0").decode(errors="ignore")


def owner() -> dict[str, Any]:
    """What a lock of this process contains."""
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}


def in_use(folder: RunPath, content: bytes) -> RunError:
    """The error that names the job that wrote `content` to the lock of a folder."""
    who = _parsed(content)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(who["since"])) if "since" in who else "an unknown time"
    job = f"process {who.get('process', 'unknown')} on {who.get('host', 'unknown')}, since {since}"
    remedy = "Wait until it ends, or stop it, or choose another --workdir"
    return RunError(f"{folder} is in use by another job: {job}. {remedy}")


def _parsed(content: bytes) -> dict[str, Any]:
    """The valid entries of a lock."""
    kinds = {"host": str, "process": int, "since": float, "refreshed": float, "token": str}
    try:
        found = dict(json.loads(content))
    except (ValueError, TypeError):
        return {}
    return {name: found[name] for name, kind in kinds.items() if isinstance(found.get(name), kind)}


class FileLock:
    """`flock` on the file `lock` in a folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._file = (folder / "lock").open("a+b", buffering=0)
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with self._file as file:
                file.seek(0)
                raise in_use(folder, file.read()) from None
        except (ImportError, OSError) as error:  # on Windows; ENOTSUP, ENOLCK, ENOSYS or EINVAL
            why = getattr(error, "strerror", None) or "this system has no locks"
            report(f"{folder} cannot be locked ({why}): make sure that no other job trains in it")
        else:
            self._write(json.dumps(owner()).encode())

    def _write(self, content: bytes) -> None:
        """Write the content of the lock; the lock is valid without it, for example on a full disk."""
        with suppress(OSError):
            self._file.truncate(0)
            self._file.write(content)

    def check(self) -> None:
        """Do nothing: the kernel gives the lock to no other job."""

    def release(self) -> None:
        """Release the lock.  The file stays: without it, two other jobs could lock two files of this name."""
        self._write(b"")
        self._file.close()


class Lease:
    """The file `lock` of a folder in an object store, refreshed by a thread while this process lives."""

    def __init__(self, folder: RunPath, report: Callable[[str], None]) -> None:
        self._path, self._owner = folder / "lock", {**owner(), "token": uuid.uuid4().hex}
        content = self._read()
        age = time.time() - _parsed(content).get("refreshed", 0.0)
        if content and age < EXPIRY:
            raise in_use(folder, content)
        if content:
            report(f"{folder} has a stale lock, left by a job that ended; taking it over")
        self._lost = False
        self._refresh()
        time.sleep(SETTLE)
        if self._taken():  # of two jobs at the same moment, the later one holds it
            raise in_use(folder, self._read())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _refresh(self) -> None:
        now = time.time()
        self._path.write_bytes(json.dumps({**self._owner, "refreshed": now}).encode())
        self._refreshed = now

    def _taken(self) -> bool:
        """Whether another job has written the lease."""
        content = self._read()
        return bool(content) and _parsed(content).get("token") != self._owner["token"]

    def check(self) -> None:
        """Raise RunError if another job has taken over the lease, which it may do once the lease has expired."""
        if not self._lost and time.time() - self._refreshed > EXPIRY:
            with suppress(Exception):  # the network is down; the write that follows will fail too
                self._lost = self._taken()
        if self._lost:
            why = f"this job could not refresh its lock for {EXPIRY // 60} minutes; this job ends"
            raise RunError(f"{self._path.parent} was taken over by another job, as {why}")

    def _keep(self) -> None:
        while not self._ended.wait(REFRESH):
            with suppress(Exception):  # the network is down; there is time for more attempts
                self._lost = self._taken()  # if this process was suspended or disconnected for too long
                if self._lost:
                    return
                self._refresh()

    def release(self) -> None:
        """Remove the lease, so that the next job need not wait."""
        self._ended.set()
        self._thread.join()
        with suppress(Exception):
            if not self._taken():
                self._path.unlink(missing_ok=True)
