"""What an experiment will cost, found without compiling or running it: shapes, parameters, FLOPs, memory."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax

from ddpm_jax.data.accept import described_images
from ddpm_jax.data.examine import as_message, quick_problems
from ddpm_jax.devices.mesh import MeshShape, check_divides
from ddpm_jax.storage import specs
from ddpm_jax.training.experiment import Experiment


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


def _bytes_of_device(tree: Any, spec: MeshShape) -> int:
    """Bytes of a device's part of a tree."""
    return sum(
        _bytes(leaf) // (spec.fsdp if spec.partition(leaf.shape, spec.fsdp) else 1) for leaf in jax.tree.leaves(tree)
    )


def _engineering(value: int) -> str:
    """12345678 as 12.3 M."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
    return f"{value / 1000**exponent:.3g} {['', 'k', 'M', 'G', 'T', 'P'][exponent]}"
