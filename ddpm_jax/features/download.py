"""Published weights: downloaded when first needed, checked, and kept in the user's cache folder.

A file gets its name only when it is complete and its sha256 is right.  Until then it is called NAME.part; the next
download resumes an interrupted one.  If several processes need the same file, one downloads it and the others wait.

pooch 1.9 offers too little to replace this: it knows one address, restarts a broken download from the beginning, does
not wait for other processes, and brings six packages.  huggingface_hub downloads only from its own site.
"""

import hashlib
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ddpm_jax.errors import RunError
from ddpm_jax.storage.paths import cache_folder

__all__ = ["WeightsFile", "fetch", "sha256_of"]

# After so many seconds without a byte the server counts as unreachable.
TIMEOUT = 30.0
BLOCK = 2**18
# Seconds between two lines that report the progress.
PAUSE = 5.0


@dataclass(frozen=True)
class WeightsFile:
    """A file to download."""

    name: str
    """Its name in the cache folder."""
    urls: tuple[str, ...]
    """Its addresses, tried in this order."""
    sha256: str
    """The digest of its content, 64 hexadecimal digits."""


def fetch(wanted: WeightsFile, folder: Path | None = None, timeout: float = TIMEOUT) -> Path:
    """The path of the file on this machine; downloads the file if it is not there yet.

    Args:
        wanted: the file.
        folder: the folder that holds it; None: `weights` in the user's cache folder.
        timeout: after how many seconds without a byte to give up a server.

    Returns:
        The path of the complete file.

    Raises:
        RunError: the file cannot be downloaded or written, or its content is not the published one.  The message names
            the addresses, and says how to install the file by hand.
    """
    folder = cache_folder("weights") if folder is None else folder
    target = folder / wanted.name
    if target.exists():
        _check(target, wanted, f"remove it to download it again, or use it as it is: inception:{target}")
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{wanted.name}.lock").open("wb") as lock:
            locked = _lock(lock)
            own = "" if locked else f".{socket.gethostname()}.{os.getpid()}"  # without a lock, nothing is shared
            if not target.exists():  # another process may have downloaded it
                _install(wanted, target, folder / f"{wanted.name}{own}.part", timeout, resumable=locked)
    except OSError as error:
        by_hand = f"download {' or '.join(wanted.urls)} yourself and give its path: inception:PATH"
        remedy = f"free space there, set XDG_CACHE_HOME to another folder, or {by_hand}"
        raise RunError(f"{target} cannot be written ({error.strerror or error}); {remedy}") from None
    return target


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, wanted: WeightsFile, remedy: str) -> None:
    """Raise RunError unless the file's sha256 is the published one."""
    found = sha256_of(path)
    if found != wanted.sha256:
        raise RunError(f"the sha256 of {path} is {found}; expected {wanted.sha256}: {remedy}")


def _lock(file: BinaryIO) -> bool:
    """Wait until this process has the lock, which ends with it; False if the system or the file system has no locks."""
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


def _install(wanted: WeightsFile, target: Path, part: Path, timeout: float, resumable: bool) -> None:
    """Download to `part`, check it, and rename it to `target`; an incomplete `part` stays if it is `resumable`."""
    try:
        _download(wanted, target, part, timeout)
        resumable = False  # a complete file with a wrong digest is removed
        _check(part, wanted, "the download has been removed; try again, or later")
        os.replace(part, target)
    finally:
        if not resumable:
            part.unlink(missing_ok=True)


def _download(wanted: WeightsFile, target: Path, part: Path, timeout: float) -> None:
    """Complete `part` from the first address that serves all of it."""
    errors = []
    for url in wanted.urls:
        try:
            return _receive(url, part, timeout)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            cause = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
            errors.append(f"{url}: {getattr(cause, 'strerror', None) or str(cause) or type(cause).__name__}")
    by_hand = f"download the file on another machine and copy it to {target}, or give its path: inception:PATH"
    remedy = f"Try again, which resumes the download; or {by_hand}"
    raise RunError(f"{wanted.name} cannot be downloaded ({'; '.join(errors)}). {remedy}")


def _receive(url: str, part: Path, timeout: float) -> None:
    """Append the missing bytes to `part`; start again from the first byte if the server cannot resume."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    _say(f"downloading {url} to {part.with_suffix('')}")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # `part` is complete; its sha256 is checked next
        raise
    with response, part.open("ab") as file:
        if response.status != http.client.PARTIAL_CONTENT:
            have = file.truncate(0)
        length, reported = response.headers.get("Content-Length"), time.monotonic()
        total = have + int(length) if length else None
        while block := response.read(BLOCK):
            file.write(block)
            have += len(block)
            if time.monotonic() > reported + PAUSE:
                reported = time.monotonic()
                _say(f"{have / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB")
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes")
    _say(f"{have / 1e6:.1f} MB downloaded")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
