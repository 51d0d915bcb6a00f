"""Meshes with explicit axes, which `jax.make_mesh` makes by default, next to those with automatic ones.

With automatic axes (`AxisType.Auto`) the compiler decides how each array lies on the devices.  With explicit axes the
type of an array says how it lies, and JAX refuses operations whose result could lie in several ways, such as a gather
with indices that are spread over the devices.  The formulas of this library work in both modes.  Compiled loops and
networks run with automatic axes; their results then lie as the caller's batch does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes, explicit_axes
from jaxtyping import Array, Shaped

from ddpm_jax.devices.functions import as_pytree


def is_explicit(mesh: Mesh | AbstractMesh) -> bool:
    """Whether a mesh has an explicit axis; an empty mesh has none."""
    return AxisType.Explicit in mesh.axis_types


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and names, with automatic axes."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def tracing() -> bool:
    """Whether a function is being traced: new arrays are then tracers, too."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def entered(mesh: Mesh) -> AbstractContextManager:
    """A context in which `mesh` is the one of `jax.set_mesh`, unless no other mesh with explicit axes is in the way."""
    context = jax.sharding.get_abstract_mesh()
    if tracing() or context == mesh.abstract_mesh or not (is_explicit(context) or is_explicit(mesh)):
        return nullcontext()
    return jax.set_mesh(mesh)


def relabelled(tree: Any, mesh: Mesh) -> Any:
    """A tree whose arrays that lie on a mesh with explicit axes are on `mesh`, the same devices; nothing is copied."""

    def move(leaf: Any) -> Any:
        place = leaf.sharding if isinstance(leaf, jax.Array) else None
        if isinstance(place, NamedSharding) and is_explicit(place.mesh):
            return jax.device_put(leaf, NamedSharding(mesh, place.spec))
        return leaf

    return jax.tree.map(move, tree)


def take(table: Shaped[Array, " entries"], index: Any) -> Shaped[Array, "..."]:
    """table[index] for an integer index of any shape, which lies as the index does."""
    index = jnp.asarray(index)
    place = jax.typeof(index).sharding
    return table.at[index].get(out_sharding=place) if is_explicit(place.mesh) else table[index]


def spec_of(batch: Any) -> PartitionSpec:
    """How a batch lies: of an array or a sharding, or of neither (None)."""
    return PartitionSpec() if batch is None else _place(batch).spec


def rows_of(spec: PartitionSpec) -> Any:
    """The axes of the mesh over which the first axis of an array is cut."""
    return spec[0] if len(spec) else None


def with_automatic_axes(
    function: Callable[..., Any], args: tuple[Any, ...], batch: Any, out: Callable[[PartitionSpec], Any]
) -> Any:
    """function(*args), traced with automatic axes if the batch or an argument lies on a mesh with explicit ones.

    args: trees of arrays.  batch: an array or a NamedSharding, None for none.  out: from how the batch lies to how the
    result does, a tree of PartitionSpecs.
    """
    places = [_place(value) for value in ([] if batch is None else [batch]) + jax.tree.leaves(args)]
    meshes = [place.mesh for place in places if place is not None and not place.mesh.empty]
    context = jax.sharding.get_abstract_mesh()
    mesh = next(filter(is_explicit, meshes), meshes[0] if meshes else context)
    with entered(mesh) if isinstance(mesh, Mesh) else nullcontext():
        if not is_explicit(mesh):
            return function(*args)
        specs = out(spec_of(batch))
        of_mesh = partial(NamedSharding, mesh)
        placed = jax.tree.map(of_mesh, specs, is_leaf=lambda spec: isinstance(spec, PartitionSpec))
        leaves, tree = jax.tree.flatten(args)
        run = auto_axes(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)), out_sharding=placed)
        return run(*leaves)


def _place(value: Any) -> Any:
    """The sharding of an array or tracer, a NamedSharding itself; None if it lies on no mesh."""
    if isinstance(value, NamedSharding):
        return value
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        return value.sharding if isinstance(value.sharding, NamedSharding) else None
    return jax.typeof(value).sharding


def lies_explicitly(array: Any) -> bool:
    """Whether an array lies on a mesh with explicit axes."""
    return is_explicit(jax.typeof(array).sharding.mesh)


def evaluate_automatically(predict: Any, z_t: Any, t: Any) -> Any:
    """predict(z_t, t), traced with automatic axes; the output is cut as z_t is, over its first axis.

    predict: any callable.
    """

    def run(predict: Any, z_t: Any, t: Any) -> Any:
        return predict(z_t, t)

    args = (as_pytree(predict), z_t, t)
    return with_automatic_axes(run, args, z_t, lambda spec: PartitionSpec(rows_of(spec)))


def evaluate(predict: Any, z_t: Any, t: Any) -> Any:
    """predict(z_t, t), traced with automatic axes; with explicit ones if that fails.

    The second case is that of a function that closes over arrays on a mesh with explicit axes, or that uses such axes.
    """
    context = jax.sharding.get_abstract_mesh()
    first: Any
    second: Any
    if lies_explicitly(z_t):
        first, second = partial(evaluate_automatically, predict), predict
    elif not context.empty and not is_explicit(context):
        rows = PartitionSpec(context.axis_names if len(z_t) % context.size == 0 else None)
        first, second = predict, explicit_axes(predict, in_sharding=(rows, rows))
    else:
        return predict(z_t, t)
    try:
        return first(z_t, t)
    except (TypeError, ValueError) as error:
        try:
            return second(z_t, t)
        except Exception:  # whatever the user's code raises: the first error is the one to read
            raise error from None
