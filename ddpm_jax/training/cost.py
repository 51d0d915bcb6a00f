"""What a training step costs, found by tracing it: floating-point operations, memory, parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.objective import Draws
from ddpm_jax.nets.convolution import TRANSPOSED_LATE
from ddpm_jax.training.experiment import Experiment

# A batch size that no other axis has: a prime.
UNLIKELY_SIZE = 61


def epochs(experiment: Experiment, count: int) -> float:
    """How often the training sees each of its `count` examples, on average."""
    return experiment.num_steps * experiment.batch_size / count


def count_parameters(shapes: Any) -> int:
    """The numbers in a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def step_flops(experiment: Experiment, shapes: Any, batch: tuple[int, ...]) -> int:
    """Floating-point operations of the convolutions and matrix products of one training step.

    The backward pass of each costs twice its forward pass, so three times the network's forward pass.
    """
    return 3 * _flops(jax.make_jaxpr(_batch_loss(experiment))(shapes, *_batch_shapes(batch)).jaxpr)


def saved_for_backward(experiment: Experiment, shapes: Any, image_shape: tuple[int, ...]) -> int:
    """Bytes of the intermediate results that the backward pass keeps of each example."""
    fun, batch = _batch_loss(experiment), (UNLIKELY_SIZE, *image_shape)
    pull_back = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: fun(p, *rest), p)[1], shapes, *_batch_shapes(batch))
    # What has no batch axis are parameters, which are there anyway.
    return _bytes([leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape[:1] == batch[:1]]) // UNLIKELY_SIZE


def _batch_shapes(batch: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    images, integers = jax.ShapeDtypeStruct(batch, jnp.float32), jax.ShapeDtypeStruct(batch[:1], jnp.int32)
    return images, images, integers, integers


def _batch_loss(experiment: Experiment) -> Any:
    """(params, x, eps, t, labels) -> the loss of a batch, as in training."""
    recipe = experiment.recipe()

    def mean_loss(params: Any, x: Any, eps: Any, t: Any, labels: Any) -> Any:
        return jnp.mean(recipe.losses(params, {"label": labels}, x, Draws(t, eps), jax.random.key(0)))

    return mean_loss


def _flops(jaxpr: Any) -> int:
    """2 x multiply-adds of every convolution and matrix product in a program, those inside calls too."""
    total = 0
    for equation in jaxpr.eqns:
        output = equation.outvars[0].aval
        if equation.primitive.name in ("conv_general_dilated", TRANSPOSED_LATE):
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += 2 * output.size * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * output.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(dict(equation.params))]
        total += sum(_flops(program) for program in inner if hasattr(program, "eqns"))
    return total


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
