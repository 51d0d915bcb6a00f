"""The folder of a run: local, or in an object store (gs://bucket/run).

A local folder is a `pathlib.Path`, a remote one an `etils.epath.Path`.  Both have the same methods, so code that reads
and writes whole files works with both.  Object stores lack appending, locks and atomic renames.
"""

import atexit
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from etils import epath

from ddpm_jax.errors import RunError, require

RunPath: TypeAlias = Path | epath.Path

# The package that each kind of address needs, for etils and Orbax.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def local_path(path: str | os.PathLike[str]) -> Path:
    """The local path, with ~ and ~user at its start expanded, as in a shell."""
    return Path(os.path.expanduser(path))


def run_path(folder: str | os.PathLike[str]) -> RunPath:
    """The folder, local (with ~ expanded) or remote.

    Raises RunError if the address is of an unknown kind, or needs a package that is not installed.
    """
    require("folder", folder, isinstance(folder, str | os.PathLike), "a path, as text or a pathlib.Path")
    text = os.fspath(folder)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return local_path(text)
    if scheme not in SCHEMES:
        raise RunError(f"{text} is not the address of a folder; expected a local path or gs://, s3:// or az://")
    if importlib.util.find_spec("tensorflow") is None and importlib.util.find_spec(SCHEMES[scheme]) is None:
        extra = "ddpm-jax[gcs]" if scheme == "gs" else SCHEMES[scheme]
        raise RunError(f"{text} needs the package {SCHEMES[scheme]}: pip install '{extra}'")
    return epath.Path(text)


def is_remote(path: RunPath) -> bool:
    """Whether a path is in an object store."""
    return "://" in os.fspath(path)


def io_errors(path: RunPath) -> type[Exception]:
    """The errors of reading and writing a path: the packages for object stores have errors of their own."""
    return Exception if is_remote(path) else OSError


def require_folder(folder: RunPath, remedy: str) -> None:
    """Raise RunError unless files can be written to a local folder, or the folder can be created; writes nothing.

    Args:
        folder: the folder; a remote one is not checked.
        remedy: what the user can do instead, the end of the message.
    """
    if is_remote(folder):
        return
    nearest = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RunError(f"{folder} cannot be a folder, as {nearest} is a file; {remedy}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"{folder} cannot be written: {nearest} belongs to another user or is read-only; {remedy}")


def write_bytes(path: RunPath, content: bytes) -> None:
    """Write a file whole or not at all; missing folders are created."""
    if is_remote(path):
        path.write_bytes(content)  # an object appears once it is complete
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(path.with_name(f".{path.name}.{os.getpid()}"))
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: RunPath, save: Callable[[BinaryIO], Any]) -> None:
    """Write a file as `write_bytes` does; `save` writes its content to a file object."""
    file = io.BytesIO()
    save(file)
    write_bytes(path, file.getvalue())


def local_copy(path: RunPath) -> Path:
    """The file itself if it is local; otherwise a local copy, which is deleted when this process ends."""
    if not is_remote(path):
        return Path(path)
    folder = tempfile.mkdtemp(prefix="ddpm-jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder) / path.name
    copy.write_bytes(path.read_bytes())
    return copy


def cache_folder(name: str) -> Path:
    """~/.cache/ddpm_jax/NAME, or $XDG_CACHE_HOME/ddpm_jax/NAME: what can be computed again, for all runs of a user."""
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ddpm_jax" / name


def remove_tree(folder: RunPath) -> None:
    """Remove a folder and its content, as far as possible."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with suppress(io_errors(folder)):
        epath.Path(folder).rmtree(missing_ok=True)


def move_tree(folder: RunPath, target: RunPath) -> None:
    """Move a folder: a local one by an atomic rename, a remote one file by file."""
    if not is_remote(folder):
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
        return
    _copy_tree(epath.Path(folder), epath.Path(target))
    remove_tree(folder)


def _copy_tree(folder: epath.Path, target: epath.Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _copy_tree(entry, target / entry.name)
        else:
            entry.copy(target / entry.name)
