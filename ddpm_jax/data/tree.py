"""The files below a folder, with symbolic links followed.

Each real folder is read once: first the folders below the root, then the targets of links.  So a link to a folder that
was already read, to the root or to a folder above it adds nothing.
"""

import os
import warnings
from collections.abc import Callable
from heapq import heappop, heappush
from pathlib import Path

__all__ = ["files_below", "sub_folders"]


def files_below(root: Path, wanted: Callable[[str], bool], by_class: bool = False) -> list[Path]:
    """The files below a folder whose names are wanted; hidden files and folders are left out.

    A broken link counts as a file, so that reading it gives an error with its name.

    Args:
        root: the folder.
        wanted: whether a file of this name is wanted.
        by_class: whether each folder directly below the root is read separately, so that two of them may link to one
            folder.

    Returns:
        The files, sorted.
    """
    above = {_identity(folder) for folder in (root, *root.resolve().parents)}
    found = _files(root, set(above), wanted, deep=not by_class)
    for folder in sub_folders(root) if by_class else []:
        found += _files(folder, set(above), wanted)
    return sorted(found)


def sub_folders(root: Path) -> list[Path]:
    """The folders directly below `root` and the links to folders, without hidden ones; sorted."""
    _, folders, _ = next(os.walk(root, onerror=_left_out), ("", [], []))
    return sorted(Path(root, name) for name in folders if not name.startswith("."))


def _files(folder: Path, seen: set[tuple[int, int]], wanted: Callable[[str], bool], deep: bool = True) -> list[Path]:
    """The wanted files in a folder and, if `deep`, below it.  Folders in `seen` are not read through links."""
    files, links = [], [(0, folder)]  # how many links lead to a folder, and the last of them
    while links:
        level, top = heappop(links)
        if level and _identity(top) in seen:
            continue
        for here, folders, names in os.walk(top, onerror=_left_out):
            seen.add(_identity(Path(here)))
            folders[:] = [name for name in folders if deep and not name.startswith(".")]
            for link in filter(Path.is_symlink, (Path(here, name) for name in folders)):
                heappush(links, (level + 1, link))
            found = (Path(here, name) for name in names if wanted(name) and not name.startswith("."))
            files += [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]
    return files


def _left_out(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise error
    warnings.warn(f"{error.filename} may not be read and is left out", stacklevel=2)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
