"""Digests of the content of a data set: whether a source still returns the same examples, and what has changed.

    arrays in memory    the SHA-256 of each
    files               the size and SHA-256 of each; modification times do not count

Any other source may have a method `fingerprint()` that returns a text, or a dictionary with a text for each part, or an
attribute `files` with the paths that it reads.  Otherwise digests of some of its examples are taken.

The bytes of a file are read once.  ~/.cache/ddpm_jax/contents then holds its digest with its size, its times of
modification and of status change, and its inode.  As long as these stay the same, the file is not read again.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.examine import reason_of
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.source import HasArrays, HasFiles, HasFingerprint, Source
from ddpm_jax.data.sources import itself
from ddpm_jax.data.stream import gather
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.storage.paths import cache_folder, write_bytes

__all__ = ["Fingerprint", "changes", "fingerprint", "of_arrays", "of_files"]

# Examples, evenly spaced, that identify a source without a description of its content.
LOOKED_AT = 100
# Files read at a time.
THREADS = 8
# Bytes that take so long to read that a line announces it.
MANY_BYTES = 2 * 10**9
# Names in a message.
SHOWN = 5
# A file may be written twice within the resolution of its times, so a file this young is read again the next time.
YOUNG_NS = 2 * 10**9


@dataclass(frozen=True)
class Fingerprint:
    """The number of examples of a source, and the digests of its parts."""

    count: int
    kind: str
    """The kind of the parts: files, arrays, examples or parts."""
    parts: dict[str, str]
    may_change: bool = False
    """Whether the user is expected to repair the data; not part of the content."""

    @property
    def digest(self) -> str:
        """One digest of all parts, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.count, self.parts], sort_keys=True).encode()).hexdigest()

    def as_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        """The fingerprint of a text of `as_json`; ValueError for any other text."""
        try:
            value = json.loads(text)
            return cls(int(value["count"]), str(value["kind"]), dict(value["parts"]), bool(value["may_change"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__})") from None


def fingerprint(
    source: Source, every_example: bool = False, report: Callable[[str], None] = lambda text: None
) -> Fingerprint:
    """The fingerprint of a source.

    Args:
        source: any source.
        every_example: whether to read all examples of a source without a description of its content.  Otherwise 100 are
            read; they count only if reading them twice gives the same bytes, unlike random crops.
        report: called with a line if reading will take a while.

    Returns:
        The fingerprint.

    Raises:
        ValueError: an example cannot be read.
    """
    source = itself(source)
    if isinstance(source, HasFingerprint):
        said = source.fingerprint()
        parts = said.items() if isinstance(said, Mapping) else [("fingerprint", said)]
        return Fingerprint(len(source), "parts", {str(name): str(digest) for name, digest in parts})
    if isinstance(source, HasArrays):
        return Fingerprint(len(source), "arrays", of_arrays(source.arrays))
    if isinstance(source, Tfds | Folder):
        parts = of_files(source.content_files, report)
        if isinstance(source, Folder) and source.labels:  # an empty class folder changes the numbers of others
            parts["(the class folders)"] = hashlib.sha256(json.dumps(source.class_names).encode()).hexdigest()
        return Fingerprint(len(source), "files", parts)
    if isinstance(source, HasFiles):
        return Fingerprint(len(source), "files", of_files({str(file): Path(file) for file in source.files}, report))
    if every_example:
        content = hashlib.sha256("".join(digest for _, digest in _examples(source, range(len(source)))).encode())
        return Fingerprint(len(source), "parts", {"all examples": content.hexdigest()})
    places = sorted({int(place) for place in np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT))})
    found = dict(_examples(source, places))
    return Fingerprint(len(source), "examples", found if found == dict(_examples(source, places)) else {})


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, str]:
    """The dtype, shape and SHA-256 of each array, by its name."""
    return {name: _of_array(np.asarray(array)) for name, array in arrays.items()}


def _of_array(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}"


def _examples(source: Source, places: Any) -> Iterator[tuple[str, str]]:
    """The name of each example at these places, and the digest of its image and label."""
    for start in range(0, len(places), 100):
        indices = np.array(places[start : start + 100])
        batch = _gathered(source, indices)
        for row, index in enumerate(indices):
            parts = {key: batch[key][row] for key in ("image", "label") if key in batch}
            yield f"example {index}", hashlib.sha256(json.dumps(of_arrays(parts)).encode()).hexdigest()


def _gathered(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples as a batch; ValueError, which names the first example that cannot be read."""
    try:
        return gather(source, indices)
    except ValueError:
        raise
    except Exception as error:  # the code of a source may raise anything
        if len(indices) == 1:
            raise ValueError(reason_of(error, f"source[{indices[0]}]")) from error
    for index in indices:
        _gathered(source, np.array([index]))
    return gather(source, indices)


def of_files(files: Mapping[str, Path], report: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """The size and SHA-256 of each file, or "missing" if it cannot be read.

    Args:
        files: the files by their names in the result.
        report: called with a line if reading will take a while.

    Returns:
        A text for each name.
    """
    if not files:
        return {}
    paths = {name: os.path.abspath(file) for name, file in files.items()}
    root = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    cache = cache_folder("contents") / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    try:
        known: dict[str, Any] = dict(json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    began = time.time_ns()
    status = {path: _status(path) for path in paths.values()}
    kept: dict[str, Any] = {path: known.get(path) for path in status}
    unread = [path for path, entry in kept.items() if entry is None or entry[:-1] != status[path]]
    size = sum(status[path][0] for path in unread)
    if size > MANY_BYTES:
        report(f"reading {len(unread):,} files of {root} once, {size / 1e9:,.1f} GB, to notice changes later")
    with ThreadPoolExecutor(THREADS) as pool:
        kept |= {path: [*status[path], digest] for path, digest in zip(unread, pool.map(_digest, unread), strict=True)}
    if unread:
        old = {path: entry for path, entry in known.items() if path not in kept and os.path.exists(path)}
        settled = {path: entry for path, entry in kept.items() if max(entry[1:3]) < began - YOUNG_NS}
        with suppress(OSError):
            write_bytes(cache, json.dumps(old | settled).encode())
    digests = {path: "missing" if entry[-1] == "missing" else f"{entry[0]} {entry[-1]}" for path, entry in kept.items()}
    return {name: digests[path] for name, path in paths.items()}


def _status(file: str) -> list[int]:
    """The size, the times of modification and of status change, and the inode."""
    with suppress(OSError):
        found = os.stat(file)
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return [0, 0, 0, 0]


def _digest(file: str) -> str:
    with suppress(OSError), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return "missing"


def changes(there: Fingerprint, here: Fingerprint) -> list[str]:
    """The differences between two fingerprints of one source.

    Args:
        there: the earlier fingerprint.
        here: the later one.

    Returns:
        A line for each kind of difference.
    """
    lines = []
    if there.count != here.count:
        lines.append(f"{there.count:,} examples then, {here.count:,} now")
    if there.kind != here.kind or not (there.parts and here.parts):  # one of them has no digests of examples
        return lines
    before, now = there.parts, here.parts
    differing = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [name for name in before if name in now and before[name] != now[name]],
    }
    for what, names in differing.items():
        if names and (there.kind != "examples" or there.count == here.count):
            noun = there.kind if len(names) > 1 else there.kind.removesuffix("s")
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names):,} {noun} {what}: {', '.join(sorted(names)[:SHOWN])}{more}")
    return lines
