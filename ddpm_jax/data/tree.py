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
    return sorted(Path(entry.path) for entry in _entries(root) if _is_folder(entry))


def _files(folder: Path, seen: set[tuple[int, int]], wanted: Callable[[str], bool], deep: bool = True) -> list[Path]:
    """The wanted files in a folder and, if `deep`, below it.  Folders in `seen` are not read through links."""
    files, waiting, links, level = [], [folder], [], 0
    while waiting:
        here = waiting.pop()
        seen.add(_identity(here))
        for entry in _entries(here):
            if not _is_folder(entry):
                files += [Path(entry.path)] if wanted(entry.name) and _is_file(entry) else []
            elif deep and entry.is_symlink():
                heappush(links, (level + 1, Path(entry.path)))  # how many links lead to it
            elif deep:
                waiting.append(Path(entry.path))
        while links and not waiting:
            level, link = heappop(links)
            waiting += [link] if _identity(link) not in seen else []
    return files


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        warnings.warn(f"{folder} may not be read and is left out", stacklevel=2)
        return []


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one; a link that cannot be followed, such as one to itself, is neither."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    """Whether it is a file or a broken link."""
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))
