"""Images from an experiment and its parameters, in chunks, on all devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ddpm_jax.devices.axes import entered
from ddpm_jax.devices.mesh import by_example, fetch, replicated
from ddpm_jax.diffusion.arrays import Key, Whole
from ddpm_jax.errors import require, require_int, require_key
from ddpm_jax.nets.network import Network
from ddpm_jax.sampling import sample
from ddpm_jax.training.experiment import Experiment

# Images drawn at a time, on each device.
CHUNK = 256


def draw_images(
    experiment: Experiment,
    params: Any,
    image_shape: tuple[int, int, int],
    key: Key,
    n: Whole,
    mesh: Mesh,
    *,
    labels: np.ndarray | None = None,
    guidance: float | None = None,
    first_index: Whole = 0,
    chunk: Whole | None = None,
    reached: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "n height width channels"]:
    """`Run.sample` with the parameters given, on the devices of `mesh`; arguments as there."""
    require_key(key)
    n, first_index = require_int("n", n, 1), require_int("first_index", first_index, 0)
    chunk = None if chunk is None else require_int("chunk", chunk, 1, "None or at least 1")
    chunks = math.ceil(n / ((chunk or CHUNK) * mesh.size))
    size = math.ceil(n / (chunks * mesh.size)) * mesh.size
    count = chunks * size  # the images beyond n are dropped at the end
    all_labels = _labels(experiment.net, labels, n, count, first_index)
    pieces = []
    with entered(mesh):
        params = jax.device_put(params, replicated(mesh))
        for start in range(0, count, size):
            model = experiment.model(params, None if all_labels is None else all_labels[start : start + size], guidance)
            options = {"first_index": first_index + start, "sharding": by_example(mesh)}
            pieces.append(fetch(sample(key, model, experiment.sampler, (size, *image_shape), **options)))
            if reached is not None:
                reached(min(start + size, n))
    return np.concatenate(pieces)[:n]


def _labels(net: Network, labels: np.ndarray | None, n: int, count: int, first_index: int) -> np.ndarray | None:
    """The labels of `count` >= n images, padded with 0; None for an unconditional network."""
    num_classes = net.num_classes
    if num_classes is None:
        require("labels", labels, labels is None, "None, as the network is not class-conditional")
        return None
    if labels is None:
        return (np.arange(count) + first_index) % num_classes
    expected = f"{n} integers in 0..{num_classes - 1}"
    try:
        labels = np.asarray(labels)
    except ValueError:  # lists of different lengths
        raise ValueError(f"labels is {labels}; expected {expected}") from None
    holds = (
        labels.shape == (n,)
        and np.issubdtype(labels.dtype, np.integer)
        and bool(np.all((labels >= 0) & (labels < num_classes)))
    )
    require("labels", labels, holds, expected)
    return np.pad(labels, (0, count - n))
