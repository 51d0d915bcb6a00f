"""What a training step costs, found by tracing it: floating-point operations, memory, parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.devices.convolution import TRANSPOSED_LATE
from ddpm_jax.diffusion.objective import Draws
from ddpm_jax.training.plan import Plan
from ddpm_jax.training.step import Recipe

# A batch size that no other axis has: a prime.
UNLIKELY_SIZE = 61


def count_parameters(shapes: Any) -> int:
    """The number of elements of a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def bytes_of(tree: Any) -> int:
    """The bytes of a tree of arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def step_flops(plan: Plan) -> int:
    """Floating-point operations of the convolutions and matrix products of one training step.

    The backward pass of each costs twice its forward pass, so three times the network's forward pass.
    """
    batch = (plan.experiment.batch_size, *plan.image_shape)
    return 3 * _flops(jax.make_jaxpr(_batch_loss(plan.recipe))(plan.state.params, *_batch_shapes(batch)).jaxpr)


def saved_for_backward(plan: Plan) -> int:
    """Bytes of the intermediate results that the backward pass keeps of each example."""
    fun, batch, params = _batch_loss(plan.recipe), (UNLIKELY_SIZE, *plan.image_shape), plan.state.params
    pull_back = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: fun(p, *rest), p)[1], params, *_batch_shapes(batch))
    # Results without a batch axis are parameters, which are in memory anyway.
    return bytes_of([leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape[:1] == batch[:1]]) // UNLIKELY_SIZE


def _batch_shapes(batch: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    images, integers = jax.ShapeDtypeStruct(batch, jnp.float32), jax.ShapeDtypeStruct(batch[:1], jnp.int32)
    return images, images, integers, integers


def _batch_loss(recipe: Recipe) -> Any:
    """(params, x, eps, t, labels) -> the loss of a batch, as in training."""

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
