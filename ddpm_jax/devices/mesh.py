"""The devices, and how arrays are sharded over them.

The same program runs on 1 device or 10,000: arrays have shardings, and the compiler inserts the communication.  The
mesh has two axes.  Every batch is sharded over both.  The training state is replicated along `data` and sharded along
`fsdp` (fully sharded data parallel; Rajbhandari et al. 2020, 1910.02054): a step gathers the parameters, and each
device keeps and updates its shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from ddpm_jax.errors import RunError, check_fields, require, require_int

Result = TypeVar("Result")

__all__ = ["MeshShape", "broadcast", "by_example", "check_divides", "fetch", "global_batch", "local_rows"]
__all__ += ["replicated", "shardings", "with_sharding"]


@dataclass(frozen=True)
class MeshShape:
    """How the devices share the work."""

    data: int | None = None
    """Copies of the training state; None for as many as the devices allow."""
    fsdp: int = 1
    """Devices that share one copy, each with a shard: less memory, more communication."""
    min_shard_size: int = 2**14
    """Arrays of fewer elements are not sharded."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data is not None:
            require_int("data", self.data, 1, "None or a whole number, at least 1")
        require_int("fsdp", self.fsdp, 1)
        require_int("min_shard_size", self.min_shard_size, 1)

    def build(self) -> Mesh:
        """The mesh of all devices of all processes; neighbours share a copy.

        Raises ValueError if the number of devices does not fit.
        """
        count = jax.device_count()
        divisors = [number for number in range(1, count + 1) if count % number == 0]
        expected = f"a divisor of the number of devices, {count}: {', '.join(map(str, divisors))}"
        require("mesh.fsdp", self.fsdp, self.fsdp in divisors, expected)
        fitting = count // self.fsdp
        expected = f"{fitting}, as {count} devices / fsdp {self.fsdp}"
        require("mesh.data", self.data, self.data in (None, fitting), expected)
        return jax.make_mesh((fitting, self.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(self, mesh: Mesh, shapes: Any) -> Any:
        """The sharding of each array of a state, from a tree of shapes.

        Args:
            mesh: the mesh of devices.
            shapes: a tree of arrays or of their shapes.

        Returns:
            The same tree, of NamedShardings.
        """
        fsdp = mesh.shape.get("fsdp", 1)
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self.partition(leaf.shape, fsdp)), shapes)

    def partition(self, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
        """The rule: the longest axis that `fsdp` divides is sharded, the last of equals; small arrays are not.

        Args:
            shape: the shape of an array.
            fsdp: the size of the axis fsdp.
        """
        axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or np.prod(shape) < self.min_shard_size:
            return PartitionSpec()
        cut = max(axes, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*("fsdp" if axis == cut else None for axis in range(len(shape))))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is cut into equal slices, one for each device."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " n"]:
    """The rows of a global batch on devices of this process, which it has to read, in rising order.

    They need not be contiguous: a mesh follows the connections between the chips, not the numbers of the processes.

    Args:
        mesh: the mesh of devices.
        batch_size: the number of rows of the global batch.
    """
    places = by_example(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, Any]:
    """One global array [batch_size, ...] for each entry, from this process's `local_rows` of the batch.

    Args:
        mesh: the mesh of devices.
        batch: this process's rows of each entry, [rows, ...].
        batch_size: the number of rows of the global batch.
    """
    rows, sharding = local_rows(mesh, batch_size), by_example(mesh)

    def whole(values: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            return values[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, piece)

    return {name: whole(values) for name, values in batch.items()}


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of a global array as NumPy, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def broadcast(value: int) -> int:
    """The boolean or whole number that the first process passes, on every process."""
    alone = jax.process_count() == 1
    return value if alone else type(value)(multihost_utils.broadcast_one_to_all(np.array(value)))


def on_first_process(work: Callable[[], Result], failure: str) -> Result | None:
    """The result of some work of the first process.

    The others wait until the work is done, as a process that leaves early counts as dead.

    Args:
        work: the work, a function of no arguments.
        failure: what the first process could not do, for the message of the others.

    Returns:
        The result on the first process, None on the others.

    Raises:
        RunError: on the other processes, if the work failed; the first process raises the error of the work.
    """
    found, done = None, False
    try:
        if jax.process_index() == 0:
            found, done = work(), True
    finally:
        done = broadcast(done)
    if not done:
        raise RunError(f"the first process could not {failure}; its own message says why")
    return found


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and dtypes, with one sharding for all arrays or a tree of shardings.

    Args:
        shapes: a tree of shapes and dtypes.
        shardings: a NamedSharding, or a tree of them.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def shardings(shapes: Any) -> Any:
    """The sharding of each array, in a tree of arrays or of shapes `with_sharding`."""
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def check_divides(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raise ValueError unless the batch divides equally over the devices, and over `accumulate` parts on each.

    Args:
        mesh: the mesh of devices.
        batch_size: the number of rows of the global batch.
        accumulate: the number of parts that a device takes one after another.
    """
    pieces = mesh.size * accumulate
    if batch_size % pieces:
        below, above = batch_size // pieces * pieces, (batch_size // pieces + 1) * pieces
        nearest = f"{below} or {above}" if below else str(above)
        how = f"equally in {accumulate} parts" if accumulate > 1 else "equally"
        raise ValueError(f"batch_size is {batch_size}, which {mesh.size} devices cannot share {how}; try {nearest}")
