"""Shared by all tests: shape and dtype annotations are enforced, eight virtual devices are at hand."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("ddpm_jax", "beartype.beartype")

import jax
import pytest

from ddpm_jax import schedule

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


@pytest.fixture(params=SCHEDULES, scope="session")
def spec(request) -> schedule.ScheduleSpec:
    """Every schedule in turn."""
    return SCHEDULES[request.param]


@pytest.fixture()
def key():
    return jax.random.key(0)
