"""Batches of a source, addressed by the step: batch n is a function of (seed, n) alone.

    order_e  = a permutation of 0..N-1 drawn from (seed, e), for every epoch e
    batch n  = (order_0, order_1, ...)[n B : (n+1) B], B the size of the global batch; it may cross epochs
    a process gathers those rows of it that its devices hold

So training goes on at any step without stored iterator state, and any number of processes sees the same
global batches.  The order is NumPy's, computed a batch at a time: no process spends time on the parts of
others.  Grain runs the steps, reading ahead in threads.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from ddpm_jax.data.accept import as_label, check_example, checked_labels
from ddpm_jax.data.source import Source, read_many
from ddpm_jax.data.sources import InMemory, image_shape

Examples = dict[str, np.ndarray]
Rows = Int[np.ndarray, " n"]

# Files are read by many threads, a batch each; arrays in memory, which are only copied, by one.
FILE_THREADS = 8
MIN_PREFETCH = 4


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    rows: Rows | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[Examples]:
    """The batches start_step, start_step + 1, ... without end, or this process's rows of them.

    Yields {"image": uint8 [n, height, width, channels]} and, if the source has labels, "label": int32 [n].

    batch_size: the global batch.  rows: which n of its rows 0..batch_size - 1 are read; all unless given.  threads:
    how many read ahead, a batch each; 0: none; None: 1 for a source in memory, 8 for others.  prefetch: how many
    batches wait in memory; None: 4, or one for each thread if there are more.
    """
    for name, value in (("seed", seed), ("start_step", start_step)):
        if value < 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")
    chosen = _rows(batch_size, rows)
    image_shape(source)
    indices = _order(len(source), seed)

    def read(step: int) -> Examples:
        return gather(source, indices(step * batch_size, (step + 1) * batch_size)[chosen])

    return _run(read, range(start_step, sys.maxsize), source, threads, prefetch)


def sequential(
    source: Source,
    batch_size: int,
    *,
    fill: bool = False,
    rows: Rows | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[Examples]:
    """Every example once, in order; the last batch may be shorter, or is filled up with copies of the last example.

    rows: as in `batches`, which needs `fill`.  threads, prefetch: as in `batches`.
    """
    chosen = _rows(batch_size, rows)
    image_shape(source)

    def read(step: int) -> Examples:
        indices = step * batch_size + chosen
        return gather(source, np.minimum(indices, len(source) - 1) if fill else indices[indices < len(source)])

    return _run(read, range(math.ceil(len(source) / batch_size)), source, threads, prefetch)


def gather(source: Source, indices: Int[np.ndarray, " batch"]) -> Examples:
    """The examples at `indices` as one batch."""
    examples = read_many(source, indices)
    return dict(_checked(examples, indices)) if isinstance(examples, Mapping) else stack(examples, indices)


def _checked(batch: Mapping[str, Any], indices: Int[np.ndarray, " batch"]) -> Examples:
    """The arrays of a batch that a source stacked itself, the labels as int32.

    Raises ValueError where there are not as many images and labels as indices, of the kinds that are expected.
    """
    images, first = np.asarray(batch["image"]), int(indices[0])
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(indices):
        raise ValueError(
            f'source.__getitems__ gives "image" as {images.dtype} {list(images.shape)} for {len(indices)} indices from '
            f"{first} on; expected uint8 [{len(indices)}, height, width, channels] with values 0..255"
        )
    if "label" not in batch:
        return {**batch, "image": images}
    called = f'source.__getitems__, for {len(indices)} indices from {first} on: "label"'
    return {**batch, "image": images, "label": checked_labels(np.asarray(batch["label"]), len(indices), called)}


def stack(examples: Sequence[Mapping[str, Any]], indices: Int[np.ndarray, " batch"]) -> Examples:
    """One array for each key: "image" uint8 [batch, height, width, channels], "label" int32 [batch].

    Raises ValueError where the images differ in shape, the examples in their keys, or a label is no 32-bit integer.
    """
    for index, example in zip(indices, examples, strict=True):
        check_example(example, int(index))
        if set(example) != set(examples[0]):
            raise ValueError(
                f"source[{indices[0]}] has {sorted(examples[0])} and source[{index}] has {sorted(example)}; "
                "expected the same in every example"
            )
        shapes = [np.shape(examples[0]["image"]), np.shape(example["image"])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"source[{indices[0]}] has an image of shape {shapes[0]} and source[{index}] of {shapes[1]}; "
                "expected one shape: resize them, as Folder(size=...) does"
            )
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0] if key != "label"}
    if "label" in examples[0]:
        labels = [as_label(example["label"], int(index)) for index, example in zip(indices, examples, strict=True)]
        batch["label"] = np.array(labels, np.int32)
    return batch


def _rows(batch_size: int, rows: Rows | None) -> Rows:
    """The rows to read, all of them unless given."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if len(rows) < 1 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows are {rows}; expected one or more of 0..{batch_size - 1}")
    return rows


def _order(count: int, seed: int) -> Callable[[int, int], Int[np.ndarray, " batch"]]:
    """indices(first, last): places first..last-1 of the permutations of 0..count-1, one after another."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Int[np.ndarray, " count"]:
        # RandomState's numbers are those of every NumPy, past and to come.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
        return random.permutation(count)

    def indices(first: int, last: int) -> Int[np.ndarray, " batch"]:
        parts = []
        for epoch in range(first // count, (last - 1) // count + 1):
            start = epoch * count
            parts.append(permutation(epoch)[max(first - start, 0) : last - start])
        return np.concatenate(parts)

    return indices


def _run(
    read: Callable[[int], Examples], steps: range, source: Source, threads: int | None, prefetch: int | None
) -> Iterator[Examples]:
    """read(step) for each step in turn, read ahead by threads."""
    import grain

    if threads is None:
        threads = 1 if isinstance(source, InMemory) else FILE_THREADS
    if prefetch is None:
        prefetch = max(MIN_PREFETCH, threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)

    def attempt(step: int) -> Examples | Exception:
        try:
            return read(step)
        except Exception as error:
            return error

    # Errors go around Grain, which would add lines of its own to their message.
    for batch in grain.MapDataset.range(steps.start, steps.stop).map(attempt).to_iter_dataset(options):
        if isinstance(batch, Exception):
            raise batch
        yield batch
