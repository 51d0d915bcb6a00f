"""What the benchmark times of ddpm_jax: the functions that training, sampling and checkpoints call themselves."""

import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from workers import Case, Job

from ddpm_jax.cli.dry_run import look_at_data
from ddpm_jax.cli.train import read_experiment
from ddpm_jax.data import Arrays
from ddpm_jax.data.stream import batches
from ddpm_jax.devices.compiler import jit
from ddpm_jax.devices.mesh import global_batch
from ddpm_jax.diffusion.arrays import stream
from ddpm_jax.interop import scheduler_config, unet_config
from ddpm_jax.sampling import Ancestral, Ddim
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.training.cost import count_parameters, step_flops
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.generate import draw_images
from ddpm_jax.training.loop import STEPS_IN_FLIGHT
from ddpm_jax.training.plan import Plan
from ddpm_jax.training.resume import as_trees

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
Shape = tuple[int, int, int]


def prepare(case: Case, how: dict[str, Any]) -> Job:
    """The case as a job; we have one way to do each."""
    job = JOBS[case.mode](case)
    device = jax.devices()[0]
    job.device_peak = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")
    return job


def describe(net: str, quick: bool) -> dict[str, Any]:
    """The network, the schedule and the device, as values that the other library understands."""
    experiment, shape = experiment_of(Case("describe", net, quick=quick))
    plan = Plan.of(replace(experiment, batch_size=1), one_device(), shape)
    parts = experiment.schedule, experiment.target, experiment.variance, experiment.clip, experiment.sampler.grid
    spec, adam, device = experiment.net, experiment.optimizer, jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "shape": shape,
        "batch": read_experiment(EXPERIMENTS / f"{net}.py").batch_size,
        "parameters": count_parameters(plan.state.params),
        "train_flops": step_flops(plan),  # of an image; a backward pass costs two forward ones
        "net": unet_config.write_config(spec, shape),
        "scheduler": scheduler_config.write_config(*parts, lambda line: None),
        "num_classes": spec.num_classes,
        "null_label": spec.null_label,
        "label_dropout": spec.label_dropout,
        "flip": experiment.flip,
        "learning_rate": adam.learning_rate,
        "betas": (adam.b1, adam.b2),
        "eps": adam.eps,
        "clip_norm": adam.clip_norm,
        "ema": experiment.ema.profiles[0],
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def experiment_of(case: Case) -> tuple[Experiment, Shape]:
    """The experiment that a case names, with what the case changes, and the shape of its images."""
    experiment = read_experiment(EXPERIMENTS / f"{case.net}.py")
    net, (height, width, channels) = experiment.net, look_at_data(experiment)[0].image_shape
    if case.quick:
        small = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        net = replace(net, **small, attention_resolutions=())
    if case.channels is not None:
        net = replace(net, channels=case.channels)
    if case.size is not None:  # attention would grow with another power of the size
        net = replace(net, attention_resolutions=(), middle_attention="none")
        height = width = case.size
    schedule = experiment.schedule if case.T is None else replace(experiment.schedule, num_steps=case.T)
    sampler = {"ddim": Ddim, "ancestral": Ancestral}.get(case.sampler, Ddim)(num_steps=case.steps or None)
    net = replace(net, dtype=case.dtype)
    changed = {"net": net, "schedule": schedule, "sampler": sampler, "batch_size": case.batch}
    return replace(experiment, **changed), (height, width, channels)


def one_device() -> Mesh:
    """A mesh of the first device: the other library is timed on one, too."""
    return jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])


def examples(count: int, shape: Shape, num_classes: int | None) -> dict[str, np.ndarray]:
    """Random images, and labels where the network has classes."""
    rng = np.random.default_rng(0)
    labels = {} if num_classes is None else {"label": np.arange(count, dtype=np.int32) % num_classes}
    return {"image": rng.integers(0, 256, (count, *shape), np.uint8), **labels}


def train(case: Case) -> Job:
    """The step of the training loop: draws, loss, gradient, clipping, Adam, average; the images are on the device."""
    experiment, shape = experiment_of(case)
    mesh = one_device()
    plan = Plan.of(experiment, mesh, shape)
    step, state = plan.step(), plan.fresh_state()
    batch = global_batch(mesh, examples(case.batch, shape, experiment.net.num_classes), case.batch)

    def run(count: int) -> None:
        nonlocal state
        under_way: list[Any] = []
        for _ in range(count):
            state, metrics = step(state, batch, jax.random.key(experiment.seed))
            under_way.append(metrics)
            if len(under_way) > STEPS_IN_FLIGHT:
                jax.block_until_ready(under_way.pop(0))
        jax.block_until_ready((state, under_way))

    return Job(run)


def forward(case: Case) -> Job:
    """One evaluation of the network, without dropout."""
    experiment, shape = experiment_of(case)
    net, given = experiment.net, examples(case.batch, shape, experiment.net.num_classes)
    predict = net.bind(net.init(jax.random.key(0), shape), labels=given.get("label"))
    z = jax.random.normal(jax.random.key(1), (case.batch, *shape))
    t = jnp.full((case.batch,), 500, jnp.int32)
    call = jit(lambda predict, z, t: predict(z, t))

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(call(predict, z, t))

    return Job(run)


def sample(case: Case) -> Job:
    """What `Run.sample` does: a batch of images, as NumPy; from another key each time."""
    experiment, shape = experiment_of(case)
    params = experiment.net.init(jax.random.key(0), shape)
    mesh, drawn = one_device(), 0

    def run(count: int) -> None:
        nonlocal drawn
        for _ in range(count):
            key = jax.random.fold_in(stream(jax.random.key(0), "benchmark"), drawn)
            draw_images(experiment, params, shape, key, case.batch, mesh)
            drawn += 1

    return Job(run)


def data(case: Case) -> Job:
    """Batches of a source in memory, shuffled, as the training loop reads them."""
    shape = tuple(case.plan["shape"])
    images = examples(500 if case.quick else 50_000, shape, None)["image"]
    found = batches(Arrays.of(images), case.batch, 0)

    def run(count: int) -> None:
        for _ in range(count):
            next(found)

    return Job(run)


def checkpoint(case: Case) -> Job:
    """Saving or restoring all of a training state, with its digests; training waits for a part of the time only."""
    experiment, shape = experiment_of(case)
    plan = Plan.of(experiment, one_device(), shape)
    state = plan.fresh_state()
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    checkpoints, blocked, newest = Checkpoints(folder, keep_last=1), [], 0
    facts = {"state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state))}

    def save(count: int) -> None:
        nonlocal newest
        for _ in range(count):
            newest += 1
            start = time.perf_counter()
            checkpoints.save(newest, as_trees(state), {"image_shape": list(shape)})
            blocked.append(time.perf_counter() - start)
            checkpoints.wait()
            to_disk(folder)
            facts["blocked_s"] = statistics.median(blocked)

    def restore(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(checkpoints.restore(newest, lambda about: as_trees(plan.state)))

    if case.mode == "save":
        return Job(save, facts, close=checkpoints.close)
    save(1)
    return Job(restore, facts={"state_bytes": facts["state_bytes"]}, close=checkpoints.close)


def to_disk(folder: Path) -> None:
    """Return once what is in a folder is on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def matmul(case: Case) -> Job:
    """A product of two large square matrices: `case.size` rows."""
    assert case.size is not None
    a = jax.random.normal(jax.random.key(0), (case.size, case.size)).astype(case.dtype)
    product = jax.jit(jnp.matmul)

    def run(count: int) -> None:
        b = a
        for _ in range(count):
            b = product(a, a)
        jax.block_until_ready(b)

    return Job(run)


JOBS = {
    "train": train,
    "forward": forward,
    "sample": sample,
    "data": data,
    "save": checkpoint,
    "restore": checkpoint,
    "matmul": matmul,
}
