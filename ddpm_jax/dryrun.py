"""What an experiment will cost, found without compiling or running it: shapes, parameters, FLOPs, memory."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import specs
from ddpm_jax.data.accept import described_images
from ddpm_jax.data.examine import as_message, quick_problems
from ddpm_jax.experiment import Experiment
from ddpm_jax.nets.convolution import TRANSPOSED_LATE
from ddpm_jax.objective import Draws
from ddpm_jax.training.mesh import MeshSpec, check_divides

# A batch size that no other axis has: a prime.
UNLIKELY_SIZE = 61


def report(experiment: Experiment) -> str:
    """The resolved config and its cost, as text for a person; the data need not be there yet.

    Raises ValueError where the experiment does not fit together or the devices.
    """
    mesh = experiment.mesh.build()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        image_shape, data = look_at_data(experiment)
    check_divides(mesh, experiment.batch_size, experiment.accumulate)
    batch = (experiment.batch_size, *image_shape)
    shapes = experiment.parameter_shapes(image_shape)
    processes = f"{jax.process_count()} process" + ("es" if jax.process_count() > 1 else "")
    in_parts = f", {experiment.accumulate} parts of it in turn" if experiment.accumulate > 1 else ""
    layout = f", {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}" if experiment.mesh.fsdp > 1 else ""
    lines = {
        "data": data,
        "batch": f"{' x '.join(map(str, batch))}, {experiment.batch_size // mesh.size} on each device{in_parts}",
        "steps": f"{experiment.num_steps:,}",
        "parameters": f"{count_parameters(shapes):,}",
        "FLOPs a step": _engineering(step_flops(experiment, shapes, batch)),
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, {processes}{layout}",
        "memory": "on each device: training state + gradient and gathered parameters + kept for the backward pass",
    }
    kept: dict[str, int] = {}  # by network, as tracing takes a second
    for name, option in alternatives(experiment, mesh.size):
        if repr(option.net) not in kept:
            kept[repr(option.net)] = saved_for_backward(option, shapes, image_shape)
        lines[f"  {name}"] = memory(option, shapes, kept[repr(option.net)], mesh.size)
    rows = [*lines.items(), *(("warning", warning.message) for warning in told)]
    table = "\n".join(f"{name:<29}{value}" for name, value in rows)
    return f"{json.dumps(specs.encode(experiment), indent=2)}\n\n{table}"


def alternatives(experiment: Experiment, devices: int) -> Iterator[tuple[str, Experiment]]:
    """The experiment as it is, and each single change that saves memory, by its flag."""
    yield "as it is", experiment
    net = experiment.net
    if getattr(net, "remat", None) is False:
        undone = " (not on CPUs)" if jax.default_backend() == "cpu" else ""  # XLA computes nothing twice there
        yield f"--net.remat{undone}", replace(experiment, net=replace(net, remat=True))
    if getattr(net, "dtype", None) == "float32":
        yield "--net.dtype bfloat16", replace(experiment, net=replace(net, dtype="bfloat16"))
    twice = 2 * experiment.accumulate
    if experiment.batch_size % (devices * twice) == 0:
        yield f"--accumulate {twice}", replace(experiment, accumulate=twice)
    if experiment.mesh.fsdp < devices:
        yield f"--mesh.fsdp {devices}", replace(experiment, mesh=replace(experiment.mesh, data=None, fsdp=devices))


def memory(experiment: Experiment, shapes: Any, kept: int, devices: int) -> str:
    """What a training step holds on each device, as text; kept: bytes of an example for the backward pass."""
    spec, state = experiment.mesh, jax.eval_shape(experiment.recipe().start, shapes)
    whole, cut = _bytes(shapes), _bytes_of_device(shapes, spec)
    parts = (
        _bytes_of_device(state, spec),
        cut + (whole if cut < whole else 0),
        kept * experiment.batch_size // (devices * experiment.accumulate),
    )
    return f"{_engineering(sum(parts))}B = " + " + ".join(f"{_engineering(part)}B" for part in parts)


def look_at_data(experiment: Experiment) -> tuple[tuple[int, int, int], str]:
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
    problems = quick_problems(experiment.data, getattr(experiment.net, "num_classes", None))
    if problems:
        raise ValueError(as_message(problems))
    return image_shape, f"{name}, {described_images(count, image_shape)}, {epochs(experiment, count):,.1f} epochs"


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


def _bytes_of_device(tree: Any, spec: MeshSpec) -> int:
    """Bytes of a device's part of a tree."""
    return sum(
        _bytes(leaf) // (spec.fsdp if spec.partition(leaf.shape, spec.fsdp) else 1) for leaf in jax.tree.leaves(tree)
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _engineering(value: int) -> str:
    """12345678 as 12.3 M."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
    return f"{value / 1000**exponent:.3g} {['', 'k', 'M', 'G', 'T', 'P'][exponent]}"
