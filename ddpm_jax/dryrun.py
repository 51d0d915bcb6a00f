"""What an experiment will cost, found without compiling or running it: shapes, parameters, FLOPs, memory."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import specs
from ddpm_jax.experiment import Experiment
from ddpm_jax.objective import Draws
from ddpm_jax.training.mesh import check_divides, make_mesh
from ddpm_jax.training.state import new_state


def report(experiment: Experiment) -> str:
    """The resolved config and its cost, as text for a person; the data need not be there yet.

    Raises ValueError where the experiment does not fit together or the devices.
    """
    mesh = make_mesh()
    image_shape, data = look_at_data(experiment)
    check_divides(mesh, experiment.batch_size)
    batch = (experiment.batch_size, *image_shape)
    shapes = experiment.parameter_shapes(image_shape)
    recipe = experiment.recipe()
    remembered = recipe.timesteps.start(recipe.schedule.num_steps)
    state = jax.eval_shape(
        lambda params: new_state(params, recipe.update, remembered, len(recipe.ema.profiles)), shapes
    )
    per_device = _bytes(state) + saved_for_backward(experiment, shapes, batch) // mesh.size
    processes = f"{jax.process_count()} process" + ("es" if jax.process_count() > 1 else "")
    lines = {
        "data": data,
        "batch": f"{' x '.join(map(str, batch))}, {experiment.batch_size // mesh.size} on each device",
        "steps": f"{experiment.num_steps:,}",
        "parameters": f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)):,}",
        "FLOPs a step": _engineering(step_flops(experiment, shapes, batch)),
        "memory": f"{_engineering(_bytes(state))}B for parameters, averages and optimizer; "
        f"about {_engineering(per_device)}B on each device with what the backward pass keeps",
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, {processes}",
    }
    table = "\n".join(f"{name:<14}{value}" for name, value in lines.items())
    return f"{json.dumps(specs.encode(experiment), indent=2)}\n\n{table}"


def look_at_data(experiment: Experiment) -> tuple[tuple[int, ...], str]:
    """The images' shape, and a line about the data; where they cannot be read, what they declare to be."""
    name = type(experiment.data).__name__
    try:
        image_shape, count = experiment.image_shape, len(experiment.data)
    except FileNotFoundError as error:
        declared = getattr(experiment.data, "declared_shape", None)
        if declared is None:
            raise
        experiment.check_without_data(declared)
        return declared, f"{name}, not there yet: {error}"
    experiment.check()
    epochs = experiment.num_steps * experiment.batch_size / count
    return image_shape, f"{name}, {count:,} images, {epochs:,.1f} epochs"


def step_flops(experiment: Experiment, shapes: Any, batch: tuple[int, ...]) -> int:
    """Floating-point operations of the convolutions and matrix products of one training step.

    The backward pass of each costs twice its forward pass, so three times the network's forward pass.
    """
    return 3 * _flops(jax.make_jaxpr(_batch_loss(experiment))(shapes, *_batch_shapes(batch)).jaxpr)


def saved_for_backward(experiment: Experiment, shapes: Any, batch: tuple[int, ...]) -> int:
    """Bytes of the intermediate results that the backward pass of a whole batch keeps."""
    fun = _batch_loss(experiment)
    pull_back = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: fun(p, *rest), p)[1], shapes, *_batch_shapes(batch))
    return _bytes(pull_back)


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
        if equation.primitive.name == "conv_general_dilated":
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


def _engineering(value: int) -> str:
    """12345678 as 12.3 M."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
    return f"{value / 1000**exponent:.3g} {['', 'k', 'M', 'G', 'T', 'P'][exponent]}"
