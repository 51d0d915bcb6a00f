"""The files below a folder, symbolic links followed.

Each real folder is read once: first those that lie below the root, then those that links lead to.  So a link back to
a folder that is read already, the root or one above it, ends there.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(root: Path, wanted: Callable[[str], bool], by_class: bool = False) -> list[Path]:
    """The files below `root` whose names are wanted, sorted; hidden files and folders are left out.

    A link that leads to nothing counts as a file, so that reading it names it.

    Args:
        root: the folder.
        wanted: takes the name of a file.
        by_class: each folder directly below the root is read by itself, so that two of them may link to one folder.
    """
    above = {_identity(folder) for folder in (root, *root.resolve().parents)}
    scopes = [_Scope(set(above), wanted)]
    scopes[0].read(root, deep=not by_class)
    if by_class:
        for folder in sub_folders(root):
            scopes.append(_Scope(set(above), wanted))
            scopes[-1].read(folder)
    return sorted(file for scope in scopes for file in scope.finish())


def sub_folders(root: Path) -> list[Path]:
    """The folders directly below `root`, links to folders among them, without hidden ones; sorted."""
    return sorted(Path(entry.path) for entry in _entries(root) if _is_folder(entry))


class _Scope:
    """Folders that are read once each."""

    def __init__(self, seen: set[tuple[int, int]], wanted: Callable[[str], bool]) -> None:
        self.seen, self.wanted = seen, wanted
        self.files: list[Path] = []
        self.links: list[Path] = []

    def read(self, folder: Path, deep: bool = True) -> None:
        """Find the files below a folder, and the links to folders, which are kept for later."""
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            self.seen.add(_identity(here))
            for entry in _entries(here):
                if _is_folder(entry):
                    if deep:
                        (self.links if entry.is_symlink() else waiting).append(Path(entry.path))
                elif self.wanted(entry.name) and _is_file(entry):
                    self.files.append(Path(entry.path))

    def finish(self) -> list[Path]:
        """The files, with those that links lead to."""
        while self.links:
            waiting, self.links = sorted(self.links), []
            for link in waiting:
                if _identity(link) not in self.seen:
                    self.read(link)
        return self.files


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        warnings.warn(f"{folder} may not be read and is left out", stacklevel=2)
        return
    yield from found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one; a link that cannot be followed, to itself for example, is not."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    """Whether it is a file, or a link that leads to nothing."""
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))
