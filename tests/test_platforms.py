"""Programs for GPUs and TPUs contain no code meant for CPUs, whatever host they are lowered on."""

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of
from jax.experimental import topologies

from ddpm_jax.devices.compiler import WITHOUT_CONVOLUTIONS, compiler_options
from ddpm_jax.devices.mesh import by_example, replicated, with_sharding
from ddpm_jax.diffusion import schedule
from ddpm_jax.errors import RunError
from ddpm_jax.nets import layers
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.training.step import Recipe, compile_step

X, KERNEL = jnp.ones((8, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
OTHERS = ("cuda", "tpu", "rocm")


def program(function, *args, platform: str) -> str:
    """StableHLO for a platform, without the places in the source."""
    text = jax.export.export(function, platforms=[platform])(*args).mlir_module()
    return re.sub(r"\n+", "\n", re.sub(r"(#loc|loc\().*", "", text))


def gradient(sharding=None):
    """The compiled gradient of a convolution, with the arguments cut over devices or not."""
    layer = layers.conv(2, "layer", "float32")

    def loss(x, kernel):
        return jnp.sum(jnp.sin(layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(2)}}, x)))

    options = {} if sharding is None else {"in_shardings": (sharding, replicated(sharding.mesh))}
    return jax.jit(jax.grad(loss, (0, 1)), **options)


def plain(monkeypatch):
    monkeypatch.setattr(layers, "convolve", jax.lax.conv_general_dilated)


@pytest.mark.parametrize("platform", OTHERS)
def test_convolutions_for_other_platforms_are_those_of_jax(platform, monkeypatch):
    ours = program(gradient(), X, KERNEL, platform=platform)
    plain(monkeypatch)
    assert ours == program(gradient(), X, KERNEL, platform=platform)


@pytest.mark.parametrize(("devices", "waits"), [(1, True), (8, False)])
def test_a_kernel_waits_for_the_gradient_on_one_cpu_only(devices, waits, monkeypatch):
    sharding = by_example(mesh_of(devices))
    ours = program(gradient(sharding), X, KERNEL, platform="cpu")
    plain(monkeypatch)
    assert (ours != program(gradient(sharding), X, KERNEL, platform="cpu")) == waits


def test_one_program_for_several_platforms_is_right_here():
    exported = jax.export.export(gradient(), platforms=["cpu", "tpu", "cuda"])(X, KERNEL)
    jax.tree.map(np.testing.assert_array_equal, exported.call(X, KERNEL), tuple(gradient()(X, KERNEL)))


def loops(recipe, platform: str) -> int:
    """The loops of a training step for one device."""
    mesh = mesh_of(1)
    state = jax.eval_shape(lambda: recipe.start(recipe.net.init(jax.random.key(0), (2,))))
    place = jax.tree.map(lambda _: replicated(mesh), state)
    batch = {"image": jax.ShapeDtypeStruct((8, 2), jnp.float32)}
    shapes = with_sharding(state, place), with_sharding(batch, by_example(mesh)), jax.random.key(0)
    return program(compile_step(recipe, place), *shapes, platform=platform).count("stablehlo.while")


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_parts_of_a_batch_are_a_loop_on_all_platforms_but_cpus(platform):
    whole, parts = (Recipe(Mlp(4, 1), schedule.Cosine(4).build(), accumulate=count) for count in (1, 4))
    assert loops(parts, platform) - loops(whole, platform) == (platform != "cpu")


def test_the_options_are_those_of_the_platform_that_a_program_is_for(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    compiler_options.cache_clear()
    assert compiler_options("cpu") == WITHOUT_CONVOLUTIONS
    assert compiler_options("gpu") == compiler_options("tpu") == {}
    compiler_options.cache_clear()


@pytest.fixture(scope="module")
def scaling():
    """The module scripts/scaling.py."""
    path = Path(__file__).parents[1] / "scripts" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def test_every_slice_of_tpu_chips_is_described_with_hosts_that_it_can_be_cut_into(scaling, monkeypatch):
    """A slice is cut into hosts of 2 x 2 chips, unless it is described otherwise: its compiler refuses other sizes."""

    def described(platform, topology_name, chips_per_host_bounds=(2, 2, 1)):
        chips = [int(size) for size in topology_name.partition(":")[2].split("x")]
        assert all(size % host == 0 for size, host in zip(chips, chips_per_host_bounds[:2], strict=True))
        return SimpleNamespace(devices=list(range(math.prod(chips))))

    monkeypatch.setattr(topologies, "get_topology_desc", described)
    found = {count: len(scaling.tpu_chips("v5e", count)) for count in (*scaling.Options.devices, 128, 256)}
    assert all(count == number for count, number in found.items())


def test_other_numbers_of_chips_and_a_machine_without_their_compiler_are_named(scaling, monkeypatch):
    with pytest.raises(ValueError, match=r"--devices is 3; expected one of 1, 2, 4, .*, 256, with --tpu"):
        scaling.Options(Path("experiments/digits.py"), devices=(1, 3), tpu="v5e")
    with pytest.raises(ValueError, match="--devices is 0; expected 1 or more"):
        scaling.Options(Path("experiments/digits.py"), devices=(0,))

    def absent(**_):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(RunError, match=r"cannot describe 2 chips of a v6e \(JAX TPU support not installed\)"):
        scaling.tpu_chips("v6e", 2)
