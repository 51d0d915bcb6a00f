"""`--dry-run`: the resolved experiment and its cost, found without compiling or running it."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax

from ddpm_jax.data import accept, examine
from ddpm_jax.data.source import DeclaresShape
from ddpm_jax.devices.mesh import MeshShape
from ddpm_jax.nets.unet import UNet
from ddpm_jax.storage import specs
from ddpm_jax.training.cost import bytes_of, count_parameters, saved_for_backward, step_flops
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.plan import Plan

__all__ = ["alternatives", "look_at_data", "memory", "report"]


def report(experiment: Experiment) -> str:
    """The resolved experiment and its cost, as text; data that declare a shape need not exist yet.

    Raises ValueError if the parts of the experiment do not fit together, or do not fit the data or the devices.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        plan, data = look_at_data(experiment)
    mesh, size, accumulate = plan.mesh, experiment.batch_size, experiment.accumulate
    processes = f"{jax.process_count()} process" + ("es" if jax.process_count() > 1 else "")
    in_parts = f", in {accumulate} parts one after another" if accumulate > 1 else ""
    layout = f", {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}" if experiment.mesh.fsdp > 1 else ""
    lines = {
        "data": data,
        "batch": f"{' x '.join(map(str, (size, *plan.image_shape)))}, {size // mesh.size} on each device{in_parts}",
        "steps": f"{experiment.num_steps:,}",
        "parameters": f"{count_parameters(plan.state.params):,}",
        "FLOPs a step": _engineering(step_flops(plan)),
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, {processes}{layout}",
        "memory": "on each device: training state + gradient and gathered parameters + kept for the backward pass",
    }
    kept: dict[str, int] = {}  # for each network, as tracing takes a second
    for name, option in alternatives(plan):
        net = repr(option.experiment.net)
        if net not in kept:
            kept[net] = saved_for_backward(option)
        lines[f"  {name}"] = memory(option, kept[net])
    rows = [*lines.items(), *(("warning", warning.message) for warning in warned)]
    table = "\n".join(f"{name:<29}{value}" for name, value in rows)
    return f"{json.dumps(specs.encode(experiment), indent=2)}\n\n{table}"


def alternatives(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan, and the plan after each single change that saves memory, each with the flag that makes it."""
    yield "as it is", plan
    of, net, devices = plan.experiment, plan.experiment.net, plan.mesh.size
    if isinstance(net, UNet) and not net.remat:
        undone = " (not on CPUs)" if jax.default_backend() == "cpu" else ""  # XLA undoes it there
        yield f"--net.remat{undone}", plan.changed(net=replace(net, remat=True))
    if isinstance(net, UNet) and net.dtype == "float32":
        yield "--net.dtype bfloat16", plan.changed(net=replace(net, dtype="bfloat16"))
    twice = 2 * of.accumulate
    if of.batch_size % (devices * twice) == 0:
        yield f"--accumulate {twice}", plan.changed(accumulate=twice)
    if of.mesh.fsdp < devices:
        yield f"--mesh.fsdp {devices}", plan.changed(mesh=replace(of.mesh, data=None, fsdp=devices))


def memory(plan: Plan, kept: int) -> str:
    """The memory of a training step on each device, as text.

    Args:
        plan: the plan of the training.
        kept: the bytes that each example keeps for the backward pass.
    """
    of, shapes = plan.experiment, plan.state.params
    whole, cut = bytes_of(shapes), _bytes_of_device(shapes, of.mesh)
    gathered, kept = whole if cut < whole else 0, kept * of.batch_size // (plan.mesh.size * of.accumulate)
    parts = _bytes_of_device(plan.state, of.mesh), cut + gathered, kept
    return f"{_engineering(sum(parts))}B = " + " + ".join(f"{_engineering(part)}B" for part in parts)


def look_at_data(experiment: Experiment) -> tuple[Plan, str]:
    """The plan, and a line about the data; data that do not exist yet are planned by their declared shape.

    Raises FileNotFoundError if the data do not exist and declare no shape, and ValueError if they have faults.
    """
    name = type(experiment.data).__name__
    try:
        plan = experiment.plan()
    except FileNotFoundError as error:
        declared = experiment.data.declared_shape if isinstance(experiment.data, DeclaresShape) else None
        if declared is None:
            raise
        experiment.check_without_data(declared)
        return Plan.of(experiment, experiment.mesh.build(), declared), f"{name}, not there yet: {error}"
    problems = examine.quick_problems(experiment.data, experiment.net.num_classes)
    if problems:
        raise ValueError(examine.as_message(problems))
    return plan, f"{name}, {accept.described_images(len(experiment.data), plan.image_shape)}, {plan.epochs:,.1f} epochs"


def _bytes_of_device(tree: Any, spec: MeshShape) -> int:
    """The bytes of the part of a tree that lies on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(bytes_of(leaf) // (spec.fsdp if spec.partition(leaf.shape, spec.fsdp) else 1) for leaf in leaves)


def _engineering(value: int) -> str:
    """A number with three digits and a prefix: 12345678 is 12.3 M."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 5)
    return f"{value / 1000**exponent:.3g} {['', 'k', 'M', 'G', 'T', 'P'][exponent]}"
