"""Apply a function to every example of a data set, exactly once, on all devices.

Batches are sharded over the mesh.  Copies of the last example fill up the last batch; their results are dropped.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.source import Source, Subset
from ddpm_jax.data.stream import sequential
from ddpm_jax.devices import axes, compiler, functions
from ddpm_jax.devices.mesh import by_example, fetch, global_batch, local_rows
from ddpm_jax.diffusion.arrays import Whole
from ddpm_jax.errors import require_int

__all__ = ["batches_of", "numbers", "over_examples"]

# Examples at a time, on each device.
CHUNK = 256
# A function of a batch and of the number of its first example.
OfBatch = Callable[[dict[str, Any], Any], Any]


def over_examples(function: OfBatch, source: Source, mesh: Mesh, chunk: int | None = None) -> Any:
    """function(batch, first) for all examples of a source.

    Each process reads its part of the source.

    Args:
        function: takes {"image": uint8 [b, height, width, channels]}, with "label": int32 [b] if there are labels, and
            the number of the first example, and returns a tree of arrays [b, ...].  Row i may depend on example i and
            its number only.  It is compiled once; pass parameters as `jax.tree_util.Partial(function, params)`.
        source: the examples.
        mesh: the devices.
        chunk: examples at a time on each device; None: 256.

    Returns:
        The function's tree, of NumPy arrays [N, ...] in the order of the examples.

    Raises:
        ValueError: `chunk` is out of range, or an example is not as `data.source` describes it.
    """
    pieces = list(batches_of(function, source, mesh, chunk))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


def batches_of(
    function: OfBatch, source: Source, mesh: Mesh, chunk: Whole | None = None, start: int = 0
) -> Iterator[Any]:
    """The results of `over_examples`, batch by batch.

    Args:
        function: as in `over_examples`.
        source: the examples.
        mesh: the devices.
        chunk: as in `over_examples`.
        start: the number of the first example.

    Returns:
        An iterator over the function's trees of NumPy arrays, one for each batch.

    Raises:
        ValueError: as in `over_examples`.
    """
    if chunk is not None:
        chunk = require_int("chunk", chunk, 1)
    count, mesh = len(source), axes.automatic(mesh)
    function = axes.relabelled(functions.as_pytree(function), mesh)
    batches = math.ceil(count / ((chunk or CHUNK) * mesh.size))
    batch_size = math.ceil(count / (batches * mesh.size)) * mesh.size
    options, sharding = compiler.compiler_options(mesh.devices.flat[0].platform), by_example(mesh)
    run = jax.jit(lambda function, *args: function(*args), out_shardings=sharding, compiler_options=options)
    rest = Subset(source, range(start, count)) if start else source
    for batch in sequential(rest, batch_size, fill=True, rows=local_rows(mesh, batch_size)):
        with axes.entered(mesh):
            found = run(function, global_batch(mesh, numbers(batch), batch_size), np.int32(start))
        yield jax.tree.map(lambda array, left=count - start: fetch(array)[:left], found)
        start += batch_size


def numbers(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The images and labels of a batch, without other entries, such as names."""
    return {name: batch[name] for name in ("image", "label") if name in batch}
