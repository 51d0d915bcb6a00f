"""Digests of checkpoints: Orbax does not notice a flipped bit, so each array and the description have a digest."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from ddpm_jax.storage.errors import CheckpointError


@jax.jit
def digest(array: Array) -> UInt32[Array, ""]:
    """The sum of the array's words, each multiplied by its own odd number, modulo 2^32.

    A change of any single word changes the sum, since an odd factor is invertible.  Integer sums do not depend on the
    order, so the digest does not depend on the sharding of the array.
    """
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
    return jnp.sum(words * (2 * jnp.uint32(2654435761) * place + 1), dtype=jnp.uint32)


def digests(tree: Any) -> list[int]:
    """The digest of each array of a tree."""
    # One at a time: the digest of a sharded array is a collective, and CPUs deadlock with many of these at once.
    return [int(jax.device_get(digest(leaf))) for leaf in jax.tree.leaves(tree)]


def sealed(about: dict[str, Any], trees: dict[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint, with the digests of its trees and one of the description itself."""
    about = {**about, "digest": {name: digests(tree) for name, tree in trees.items()}}
    return {**about, "seal": _seal(about)}


def check_description(step: int, about: dict[str, Any]) -> None:
    """Raise CheckpointError unless the description of a checkpoint is what `sealed` returned."""
    if about.get("seal") != _seal(about):
        raise CheckpointError(f"checkpoint {step} is damaged: its description is not what was written")


def check_trees(step: int, about: dict[str, Any], trees: dict[str, Any]) -> None:
    """Raise CheckpointError unless these trees of a checkpoint have the digests in its description."""
    for name, tree in trees.items():
        if digests(tree) != about["digest"][name]:
            raise CheckpointError(f"checkpoint {step} is damaged: {name} is not what was written")


def _seal(about: dict[str, Any]) -> str:
    """The digest of a description, as JSON returns it."""
    content = json.loads(json.dumps({name: value for name, value in about.items() if name != "seal"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
