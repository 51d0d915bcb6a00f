"""Shared by all tests: annotations are enforced, eight virtual devices are at hand, nothing is compiled twice."""

import atexit
import fcntl
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little: programs in one part, optimised little and put together in the older way
# compile in a third of the time.  Of the older way jaxlib 0.12 knows nothing, and an unknown flag stops it.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["QUICK_XLA_FLAGS"] = QUICK  # for the processes that tests start
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # with a test on each core, more threads only wait
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # for the processes that tests start, too
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ddpm-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jaxtyping

jaxtyping.install_import_hook("ddpm_jax", "beartype.beartype")

import jax
import pytest
from helpers import SCHEDULES, mesh_of
from jax.sharding import Mesh

from ddpm_jax.data import Digits
from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ddim
from ddpm_jax.training.average import Ema
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.loop import Training, train
from ddpm_jax.training.optimizer import Adam


@pytest.fixture(params=SCHEDULES, scope="session")
def spec(request) -> schedule.Schedule:
    """Every schedule in turn."""
    return SCHEDULES[request.param]


@pytest.fixture(scope="session")
def one() -> Mesh:
    """A mesh of one device: eight take longer to compile for."""
    return mesh_of(1)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """A whole experiment that trains in seconds, and that draws from every stream of random numbers."""
    return Experiment(
        name="tiny",
        data=Digits(),
        net=UNet(
            channels=8,
            channel_multipliers=(1,),
            num_res_blocks=1,
            attention_resolutions=(),
            dropout=0.1,
            num_classes=10,
            label_dropout=0.2,
        ),
        schedule=schedule.Cosine(num_steps=20),
        optimizer=Adam(learning_rate=3e-3, warmup_steps=2),
        ema=Ema(decay=0.9),
        sampler=Ddim(num_steps=2),
        clip=Clip(),
        flip=True,
        batch_size=16,
        num_steps=6,
        log_every=2,
        checkpoint_every=3,
        sample_every=6,
        num_samples=8,
    )


@pytest.fixture(scope="session")
def finished(tiny, one, tmp_path_factory) -> Path:
    """The folder of a run of `tiny`, never interrupted: trained once, and copied for each process of the tests."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    folder = tmp_path_factory.mktemp("finished") / "run"
    with (place / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "finished").exists():
            train(tiny, place / "training", one)
            (place / "training").rename(place / "finished")
    shutil.copytree(place / "finished", folder)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """To compile the sampler takes longer than a short training."""
    monkeypatch.setattr(Training, "draw_picture", lambda *_: None)


@pytest.fixture
def unchecked():
    """Annotations are not enforced, as in use."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
