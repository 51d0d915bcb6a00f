"""The devices, and how arrays lie on them: parameters everywhere, the batch cut into slices.

One program in the global view runs on 1 device or 10,000: arrays are annotated with where they lie, and
the compiler inserts the communication.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh with the one axis `data` over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis cut into equal slices, one for each device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """One global array for each entry, from the slice of the batch that this process read."""
    return {name: jax.make_array_from_process_local_data(by_example(mesh), values) for name, values in batch.items()}


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of a global array as NumPy, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def broadcast(value: bool) -> bool:
    """What the first process says, on every process."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value))) if jax.process_count() > 1 else value


def on_all(value: bool) -> bool:
    """Whether it is so on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value


def with_sharding(shapes: Any, sharding: NamedSharding) -> Any:
    """A tree of shapes and dtypes, with where each array shall lie."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def check_divides(mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError unless the batch can be cut into one slice for each device."""
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, (batch_size // mesh.size + 1) * mesh.size
        nearest = f"{below} or {above}" if below else str(above)
        raise ValueError(f"batch_size is {batch_size}, which {mesh.size} devices cannot share equally; try {nearest}")
