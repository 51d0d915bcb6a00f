"""What several tests build: meshes, schedules, networks, small runs, and what a figure needs to be readable."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from ddpm_jax.cli import main
from ddpm_jax.diffusion import schedule
from ddpm_jax.nets import Network
from ddpm_jax.nets.init import ALMOST_ZERO_LAYERS
from ddpm_jax.nets.unet import UNet
from ddpm_jax.run import Run
from ddpm_jax.storage import specs
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.resume import as_trees

# Flags with which programs compile quickly, as conftest.py sets them.
QUICK = os.environ["QUICK_XLA_FLAGS"]

SCHEDULES = {
    "linear": schedule.Linear(),
    "linear-given": schedule.Linear(num_steps=50, beta_start=1e-3, beta_end=0.2),
    "linear-short": schedule.Linear(num_steps=20),
    "scaled-linear": schedule.ScaledLinear(),
    "cosine": schedule.Cosine(),
    "cosine-short": schedule.Cosine(num_steps=8),
    "sigmoid": schedule.Sigmoid(),
    "betas": schedule.Betas((0.1, 0.2, 0.05, 0.4)),
}


def mesh_of(data: int, fsdp: int = 1) -> Mesh:
    """A mesh of the first `data` x `fsdp` devices."""
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


EXPERIMENT = """
from dataclasses import dataclass
import numpy as np
from ddpm_jax.data import Digits
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.cli.main import launch
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ddim
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.training.average import PowerEma
from ddpm_jax.training.optimizer import Adam

@dataclass(frozen=True)
class Constant(Schedule):
    num_steps: int = 30
    def betas(self):
        return np.full(self.num_steps, 0.1)

experiment = Experiment(
    name="killed", data=Digits(), schedule=Constant(), sampler=Ddim(num_steps=2), flip=True, batch_size=16,
    net=UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.1),
    optimizer=Adam(learning_rate=1e-3, warmup_steps=3, decay="cosine"),
    ema=PowerEma(snapshot_every=3),
    num_steps=24, log_every=1, checkpoint_every=4, sample_every=1000, num_samples=4,
)
if __name__ == "__main__":
    launch(experiment)
"""


def start(file: Path, workdir: Path, devices: int = 1) -> subprocess.Popen:
    """The training in a process of its own."""
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    return process([str(file), "--workdir", str(workdir)], flags)


def process(arguments: list[str], flags: str) -> subprocess.Popen:
    """Python with these arguments, its output kept."""
    command, pipe = [sys.executable, *arguments], subprocess.PIPE
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.002)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def logged(workdir: Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def last_state(workdir: Path, one) -> list[np.ndarray]:
    experiment = specs.load(workdir / "experiment.json")
    shapes = experiment.plan(one).state
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, trees = checkpoints.restore_newest(lambda about: as_trees(shapes), report=pytest.fail)
    checkpoints.close()
    assert step == experiment.num_steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves({name: trees[name] for name in ("training", "ema", "ema_1")})]


def fails(capsys, *arguments: str) -> str:
    """What a command prints to stderr, having ended with status 2."""
    with pytest.raises(SystemExit) as stop:
        main.main(list(map(str, arguments)))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    text = printed.err + printed.out
    assert "Traceback" not in text
    return " ".join(text.replace("│", " ").split())


SMALL = UNet(8, (1, 2), 1, (8,), dropout=0.0)


NETWORKS = {
    "as published": SMALL,
    "with every option": replace(
        SMALL,
        adaptive_norm=True,
        num_classes=5,
        label_dropout=0.2,
        patch_size=2,
        attention_resolutions=(4,),
        out_multiplier=2,
        head_channels=4,
        dropout=0.1,
        middle_attention="plain",
        frequency_shift=0.0,
        cos_first=True,
        pad_both_sides=True,
        remat=True,
    ),
}


def case(spec: UNet, batch: int, size: int, seed: int = 0):
    """(loss of the parameters and the dtype, parameters): kernels that start at zero are not, as in training."""
    keys = jax.random.split(jax.random.key(seed), 6)
    params = spec.init(keys[0], (size, size, 3))

    def trained(path, leaf):
        names = [entry.key for entry in path]
        at_zero = names[-1] == "kernel" and names[-2] in ALMOST_ZERO_LAYERS
        return 0.05 * jax.random.normal(jax.random.fold_in(keys[1], len(str(path))), leaf.shape) if at_zero else leaf

    z = jax.random.normal(keys[2], (batch, size, size, 3))
    t = jax.random.randint(keys[3], (batch,), 1, 1001)
    eps = jax.random.normal(keys[4], (batch, size, size, 3 * spec.out_multiplier))
    labels = None if spec.num_classes is None else jax.random.randint(keys[5], (batch,), 0, spec.num_classes)

    def loss(params, dtype):
        net = replace(spec, dtype=dtype)
        return jnp.mean((net.bind(params, labels, keys[0] if spec.dropout else None)(z, t) - eps) ** 2)

    return loss, jax.tree_util.tree_map_with_path(trained, params)


def equations(jaxpr) -> Iterator:
    """All equations of a program, those inside calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(dict(equation.params), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def averages_of(averaging, values):
    """The averages of a sequence of parameters theta_0, theta_1, ..., after each step: [steps, profiles, ...]."""

    def step(averages, inputs):
        averages = averaging.update(averages, *inputs)
        return averages, jnp.stack([average["w"] for average in averages])

    start = tuple({"w": jnp.asarray(values[0], jnp.float32)} for _ in averaging.profiles)
    inputs = ({"w": jnp.asarray(values[1:], jnp.float32)}, jnp.arange(1, len(values)))
    return np.asarray(jax.lax.scan(step, start, inputs)[1])


@dataclass(frozen=True)
class Factors(Network):
    """A network so small that it compiles at once: z_t times a factor for each row of pixels."""

    def init(self, key, image_shape):
        return {"factors": 0.1 * jax.random.normal(key, (image_shape[0], 1, 1))}

    def bind(self, params):
        return lambda z_t, t: params["factors"] * z_t


@dataclass(frozen=True)
class Labelled(Factors):
    """And for ten classes, with a label that means none: each label adds its own to the output."""

    num_classes: ClassVar[int] = 10
    null_label: ClassVar[int] = 10

    def bind(self, params, labels):
        return lambda z_t, t: params["factors"] * z_t + 0.05 * jnp.asarray(labels, jnp.float32)[:, None, None, None]


def run_of(experiment: Experiment, net: Network, mesh: Mesh) -> Run:
    """A run as it is read from its folder, of another network with its first parameters."""
    of = replace(experiment, net=net)
    params = net.init(jax.random.key(0), of.image_shape)
    return Run(of, of.num_steps, params, of.image_shape, mesh, of.ema.decay)


def readable(figure):
    """Axes have labels, no two texts overlap, no letter is below 8 points, entries of a legend differ without colour,
    and markers that stand alone do not hide each other."""
    for axes in figure.findobj(lambda artist: type(artist).__name__ == "Axes"):
        for axis in (axes.xaxis, axes.yaxis):
            shows_numbers = any(label.get_text() and label.get_visible() for label in axis.get_ticklabels())
            assert not shows_numbers or label_of(axis), (axes.get_title(), axis.axis_name)
        handles, _ = axes.get_legend_handles_labels()
        looks = [look(handle) for handle in handles if hasattr(handle, "get_linestyle")]
        assert len(set(looks)) == len(looks), (axes.get_title(), looks)
        places = [
            axes.transData.transform(np.column_stack(line.get_data())) * 72 / figure.dpi
            for line in axes.lines
            if line in handles and line.get_linestyle() == "None" and len(line.get_xdata())
        ]
        for one, other in combinations(places, 2):
            assert np.linalg.norm(one[:, None] - other, axis=2).min() > 4, axes.get_title()
    beyond = {id(label) for axes in figure.findobj(lambda a: hasattr(a, "get_xaxis")) for label in not_drawn(axes)}
    texts = [text for text in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if id(text) not in beyond]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 8
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for (a, one), (b, other) in combinations(boxes, 2):
        shared = one.intersection(one, other)
        assert shared is None or min(shared.width, shared.height) < 1, (a, b)


def label_of(axis):
    """The axis' label, or of axes that share it, the one at the edge."""
    shared = getattr(axis.axes, f"get_shared_{axis.axis_name}_axes")().get_siblings(axis.axes)
    return axis.get_label_text() or any(getattr(other, f"get_{axis.axis_name}label")() for other in shared)


def look(handle):
    """What is left of a line in grey."""
    return str(handle.get_linestyle()), str(handle.get_marker()), handle.get_linewidth() > 2


def not_drawn(axes):
    """Labels of hidden axes, and of ticks outside the view."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not (axis.get_visible() and low <= tick.get_loc() <= high):
                yield tick.label1
