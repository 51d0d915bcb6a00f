"""Functions of single examples, over all of a data set on all devices: every example counts, once.

Batches are cut over the mesh.  The last one is filled up with copies of the last example, whose results are dropped.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.source import Source, read_many
from ddpm_jax.data.stream import sequential
from ddpm_jax.devices.axes import automatic, entered, relabelled
from ddpm_jax.devices.compiler import compiler_options
from ddpm_jax.devices.functions import as_pytree
from ddpm_jax.devices.mesh import by_example, fetch, global_batch, local_rows
from ddpm_jax.diffusion.arrays import Whole
from ddpm_jax.errors import require_int

# Examples at a time, on each device.
CHUNK = 256


def over_examples(
    function: Callable[[dict[str, Any], Any], Any], source: Source, mesh: Mesh, chunk: int | None = None
) -> Any:
    """function(batch, first) of every example of a source: its tree of arrays, each as NumPy [N, ...], in order.

    function: takes {"image": uint8 [b, height, width, channels], and "label": int32 [b] where there are labels} and
    the number of the first of them, and gives arrays [b, ...]; row i may depend on example i and its number only.  It
    is compiled once; parameters belong in a pytree, `jax.tree_util.Partial(function, params)`.  chunk: examples at a
    time on each device, 256 unless given.  Each process reads its part.
    """
    pieces = list(batches_of(function, source, mesh, chunk))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)


def batches_of(
    function: Callable[[dict[str, Any], Any], Any],
    source: Source,
    mesh: Mesh,
    chunk: Whole | None = None,
    start: int = 0,
) -> Iterator[Any]:
    """What `over_examples` puts together, batch by batch, from example `start` on."""
    if chunk is not None:
        chunk = require_int("chunk", chunk, 1)
    count, mesh = len(source), automatic(mesh)
    function = relabelled(as_pytree(function), mesh)
    batches = math.ceil(count / ((chunk or CHUNK) * mesh.size))
    batch_size = math.ceil(count / (batches * mesh.size)) * mesh.size
    run = jax.jit(
        lambda function, batch, first: function(batch, first),
        out_shardings=by_example(mesh),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )
    rest = From(source, start) if start else source
    for batch in sequential(rest, batch_size, fill=True, rows=local_rows(mesh, batch_size)):
        with entered(mesh):
            found = run(function, global_batch(mesh, numbers(batch), batch_size), np.int32(start))
        yield jax.tree.map(lambda array, left=count - start: fetch(array)[:left], found)
        start += batch_size


@dataclass(frozen=True)
class From:
    """A source without its first examples."""

    source: Source
    start: int

    def __len__(self) -> int:
        return len(self.source) - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.start + index]

    def __getitems__(self, indices: np.ndarray) -> Any:
        return read_many(self.source, indices + self.start)


def numbers(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The images and labels of a batch, without names or whatever else an example has."""
    return {name: batch[name] for name in ("image", "label") if name in batch}
