"""Published weights: downloaded when they are first needed, checked, and kept in the user's cache folder.

A file gets its name only when it is whole and its sha256 is right: until then it is NAME.part, which a killed
download leaves behind and the next one goes on with.  Of processes that want the same file at once one downloads,
and the others wait for it.
"""

import contextlib
import hashlib
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ddpm_jax.errors import RunError
from ddpm_jax.storage.paths import cache_folder

# Seconds without a byte after which a server is given up.
TIMEOUT = 30.0
BLOCK = 2**18


@dataclass(frozen=True)
class WeightsFile:
    """A file to download."""

    name: str
    """What it is called here."""
    urls: tuple[str, ...]
    """Where it can be had, the first that answers is taken."""
    sha256: str
    """Of its content, 64 hexadecimal digits."""


def fetch(wanted: WeightsFile, folder: Path | None = None, timeout: float = TIMEOUT) -> Path:
    """The file on this machine, downloaded unless it is there.

    Raises RunError where it cannot be had, saying from where and how to put it there by hand, and where its content is
    not the published one.
    """
    folder = cache_folder("weights") if folder is None else folder
    target = folder / wanted.name
    if target.exists():
        _check(target, wanted, f"remove it, to have it downloaded again, or use it as it is: inception:{target}")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder, wanted.name) as part:
            if not target.exists():  # another process may have been quicker
                _download(wanted, target, part, timeout)
                try:
                    _check(part, wanted, "what was downloaded has been removed; try again, or later")
                except RunError:
                    part.unlink()
                    raise
                os.replace(part, target)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror or error}); make room there, set XDG_CACHE_HOME to another "
            f"folder, or get {' or '.join(wanted.urls)} yourself and name its place: inception:PATH"
        ) from None
    return target


def _check(path: Path, wanted: WeightsFile, remedy: str) -> None:
    """Raise RunError unless the file's sha256 is the published one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        raise RunError(f"the sha256 of {path} is {found}; expected {wanted.sha256}: {remedy}")


@contextlib.contextmanager
def _turn(folder: Path, name: str) -> Iterator[Path]:
    """The file to download into, while no other process does so."""
    with (folder / f"{name}.lock").open("wb") as lock:
        if _lock(lock):
            yield folder / f"{name}.part"
            return
    part = folder / f"{name}.{socket.gethostname()}.{os.getpid()}.part"  # nobody goes on with that
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> bool:
    """Wait until this process has the lock, which ends with it; False where the file system or Python has none."""
    try:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process, which downloads {Path(file.name).stem}")
            fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return False
    return True


def _download(wanted: WeightsFile, target: Path, part: Path, timeout: float) -> None:
    """Fill `part`, from the first address that gives all of it."""
    reasons = []
    for url in wanted.urls:
        try:
            _receive(url, part, timeout)
            return
        except urllib.error.HTTPError as error:  # a kind of OSError, as all those of urllib are
            reasons.append(f"{url}: {error.code} {error.reason}")
        except urllib.error.URLError as error:
            reasons.append(f"{url}: {_words(error.reason)}")
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reasons.append(f"{url}: {_words(error)}")
    raise RunError(
        f"{wanted.name} cannot be downloaded ({'; '.join(reasons)}). Try again, which goes on where it stopped; or get "
        f"the file from there on another machine and put it at {target}, or name its place: inception:PATH"
    )


def _words(error: Any) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _receive(url: str, part: Path, timeout: float) -> None:
    """Append to `part` what is missing of it, or begin anew where the server knows no parts."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # there is no more: whether it is right the sha256 says
        raise
    with response, part.open("ab") as file:
        if response.status != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        progress = Progress(url, part.with_suffix(""), total)
        while block := response.read(BLOCK):
            file.write(block)
            have += len(block)
            progress.at(have)
        progress.end(have)
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes")


class Progress:
    """How far a download is, on stderr: one line that changes on a terminal, a line each ten seconds elsewhere."""

    def __init__(self, url: str, target: Path, total: int | None) -> None:
        self._total, self._terminal = total, sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._next = time.monotonic() + self._every
        _say(f"downloading {url} to {target}")

    def at(self, have: int) -> None:
        """So many bytes are here."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            share = f" of {self._total / 1e6:.1f} MB ({100 * have / self._total:.0f}%)" if self._total else " MB"
            print(f"{have / 1e6:.1f}{share}", end="\r" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self, have: int) -> None:
        """It is over."""
        _say(f"{have / 1e6:.1f} MB downloaded")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
