"""Batches of a source, addressed by the step: batch n is a function of (seed, n) alone.

    order_e  = a permutation of 0..N-1 drawn from (seed, e), for every epoch e
    batch n  = (order_0, order_1, ...)[n B : (n+1) B], B the size of the global batch; it may cross epochs

Each process gathers those rows of the batch that its devices hold.  So training resumes at any step without stored
iterator state, and any number of processes sees the same global batches.  NumPy computes the order one batch at a time.

A pool of threads reads ahead.  Grain would add a dependency and a median 1.3 s before the first batch, and is not
faster: of 2,000 JPEGs of 256 pixels, 8 threads on 2 cores read a median 827 a second, Grain's threads 833, and two of
Grain's worker processes 167.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from ddpm_jax.data.accept import as_label, check_example, checked_labels
from ddpm_jax.data.source import Source, read_many
from ddpm_jax.data.sources import InMemory, image_shape
from ddpm_jax.errors import require_int

__all__ = ["FILE_THREADS", "Examples", "Rows", "batches", "gather", "sequential", "stack"]

Examples = dict[str, np.ndarray]
Rows = Int[np.ndarray, " n"]

# Many threads read files, one batch each.  One thread copies from arrays in memory.
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

    Args:
        source: the examples.
        batch_size: the size of the global batch.
        seed: the seed of the order, 0 or more.
        start_step: the number of the first batch.
        rows: which n of the rows 0..batch_size - 1 of each batch to read; None: all of them.
        threads: how many threads read ahead, one batch each; 0: none; None: 1 for arrays in memory, 8 otherwise.
        prefetch: how many batches are kept in memory; None: one for each thread, 4 at least.

    Returns:
        An iterator over {"image": uint8 [n, height, width, channels]} and, if the source has labels, "label":
        int32 [n].

    Raises:
        ValueError: an argument is out of range, or an example is not as `data.source` describes it.
    """
    require_int("seed", seed, 0)
    require_int("start_step", start_step, 0)
    chosen = _rows(batch_size, rows)
    image_shape(source)
    indices = _order(len(source), seed)

    def read(step: int) -> Examples:
        return gather(source, indices(step * batch_size, (step + 1) * batch_size)[chosen])

    return _read_ahead(read, itertools.count(start_step), source, threads, prefetch)


def sequential(
    source: Source,
    batch_size: int,
    *,
    fill: bool = False,
    rows: Rows | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
) -> Iterator[Examples]:
    """Every example once, in order.

    Args:
        source: the examples.
        batch_size: the size of a batch.
        fill: whether copies of the last example fill up the last batch, which is shorter otherwise.
        rows: as in `batches`; requires `fill`.
        threads: as in `batches`.
        prefetch: as in `batches`.

    Returns:
        An iterator over batches, as `batches` gives.

    Raises:
        ValueError: as in `batches`.
    """
    chosen = _rows(batch_size, rows)
    image_shape(source)

    def read(step: int) -> Examples:
        indices = step * batch_size + chosen
        return gather(source, np.minimum(indices, len(source) - 1) if fill else indices[indices < len(source)])

    return _read_ahead(read, range(math.ceil(len(source) / batch_size)), source, threads, prefetch)


def gather(source: Source, indices: Int[np.ndarray, " batch"]) -> Examples:
    """The examples at `indices` as one batch.

    Args:
        source: the examples.
        indices: their numbers.

    Returns:
        One array for each key: "image" uint8 [batch, height, width, channels], "label" int32 [batch].

    Raises:
        ValueError: an image or a label is not as `data.source` describes it, or the examples differ in shape or keys.
    """
    examples = read_many(source, indices)
    return dict(_checked(examples, indices)) if isinstance(examples, Mapping) else stack(examples, indices)


def _checked(batch: Mapping[str, Any], indices: Int[np.ndarray, " batch"]) -> Examples:
    """The batch that `__getitems__` of a source returned, with labels as int32; ValueError if an array is wrong."""
    images, count = np.asarray(batch["image"]), len(indices)
    asked = f"for {count} indices from {indices[0]} on"
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
        found = f'source.__getitems__ gives "image" as {images.dtype} {list(images.shape)} {asked}'
        raise ValueError(f"{found}; expected uint8 [{count}, height, width, channels] with values 0..255")
    if "label" not in batch:
        return {**batch, "image": images}
    labels = checked_labels(np.asarray(batch["label"]), count, f'source.__getitems__, {asked}: "label"')
    return {**batch, "image": images, "label": labels}


def stack(examples: Sequence[Mapping[str, Any]], indices: Int[np.ndarray, " batch"]) -> Examples:
    """One array for each key of the examples.

    Args:
        examples: dictionaries as `data.source` describes them.
        indices: their numbers, for messages.

    Returns:
        "image" uint8 [batch, height, width, channels], "label" int32 [batch], and any other key.

    Raises:
        ValueError: images differ in shape, examples differ in their keys, or a label is not a 32-bit integer.
    """
    for index, example in zip(indices, examples, strict=True):
        check_example(example, int(index))
        if set(example) != set(examples[0]):
            found = f"source[{indices[0]}] has {sorted(examples[0])} and source[{index}] has {sorted(example)}"
            raise ValueError(f"{found}; expected the same in every example")
        first, shape = np.shape(examples[0]["image"]), np.shape(example["image"])
        if first != shape:
            found = f"source[{indices[0]}] has an image of shape {first} and source[{index}] of {shape}"
            raise ValueError(f"{found}; expected one shape: resize them, as Folder(size=...) does")
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0] if key != "label"}
    if "label" in examples[0]:
        labels = [as_label(example["label"], int(index)) for index, example in zip(indices, examples, strict=True)]
        batch["label"] = np.array(labels, np.int32)
    return batch


def _rows(batch_size: int, rows: Rows | None) -> Rows:
    """The rows to read: all of them if `rows` is None."""
    require_int("batch_size", batch_size, 1)
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if len(rows) < 1 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows are {rows}; expected one or more of 0..{batch_size - 1}")
    return rows


def _order(count: int, seed: int) -> Callable[[int, int], Int[np.ndarray, " batch"]]:
    """indices(first, last): places first..last-1 of the permutations of 0..count-1, one after another."""

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Int[np.ndarray, " count"]:
        # RandomState gives the same numbers in every version of NumPy.
        bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
        return np.random.RandomState(bits).permutation(count)

    def indices(first: int, last: int) -> Int[np.ndarray, " batch"]:
        parts = []
        for epoch in range(first // count, (last - 1) // count + 1):
            parts.append(permutation(epoch)[max(first - epoch * count, 0) : last - epoch * count])
        return np.concatenate(parts)

    return indices


def _read_ahead(
    read: Callable[[int], Examples], steps: Iterable[int], source: Source, threads: int | None, prefetch: int | None
) -> Iterator[Examples]:
    """read(step) for each step in turn; `threads` threads keep up to `prefetch` results ready."""
    threads = (1 if isinstance(source, InMemory) else FILE_THREADS) if threads is None else threads
    if threads == 0:
        yield from map(read, steps)
        return
    ahead = max(MIN_PREFETCH, threads) if prefetch is None else prefetch
    pool, waiting = ThreadPoolExecutor(threads, "batches"), deque[Future[Examples]]()
    try:
        for step in steps:
            waiting.append(pool.submit(read, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also if the caller drops this iterator, or if Python exits: cancel_futures=True would fail then
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=False)
