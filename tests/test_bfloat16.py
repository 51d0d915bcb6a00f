"""Gradients in bfloat16: as close to those in float32 as 8 bits allow, as every long sum is in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NETWORKS, case, equations

from ddpm_jax.nets.layers import conv, dense
from ddpm_jax.nets.unet import UNet

# The most terms that a sum of bfloat16 numbers may have: an upsampled position has four.
FEW = 4


def long_sums(function, *args) -> list[str]:
    """The sums of more than FEW numbers that are added up in bfloat16."""
    found = []
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        name, out = equation.primitive.name, equation.outvars[0].aval
        reduces = name == "reduce_sum" and equation.invars[0].aval.size > FEW * out.size
        if (reduces or name.startswith("scatter-add") or name == "cumsum") and out.dtype == jnp.bfloat16:
            found.append(str(equation))
    return found


@pytest.mark.parametrize("name", ["as published", pytest.param("with every option", marks=pytest.mark.slow)])
def test_no_gradient_adds_up_many_numbers_in_bfloat16(name):
    loss, params = case(NETWORKS[name], 2, 16)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):  # see test_promotion.py
        assert not long_sums(jax.grad(lambda params: loss(params, "bfloat16")), params)


@pytest.mark.parametrize("layer", [conv, dense])
def test_the_gradient_of_a_bias_is_right_for_many_positions(layer):
    module = layer(3, "layer", "bfloat16")
    x = jnp.ones((8, 64, 64, 2), jnp.bfloat16)
    params = module.init(jax.random.key(0), x)
    gradient = jax.grad(lambda params: jnp.sum(module.apply(params, x).astype(jnp.float32)))(params)
    np.testing.assert_array_equal(gradient["params"]["bias"], np.full(3, x.size // 2))


def errors(spec: UNet, batch: int, size: int, seed: int) -> dict[str, float]:
    """The relative error of the gradient of each leaf, apart from the bias of attention's keys, whose gradient is 0."""
    loss, params = case(spec, batch, size, seed)
    exact, rounded = (jax.jit(jax.grad(lambda p, d=d: loss(p, d)))(params) for d in ("float32", "bfloat16"))
    found = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)), exact, rounded)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    by_name = {"/".join(entry.key for entry in path): error for path, error in leaves}
    return {name: error for name, error in by_name.items() if not name.endswith("key/bias")}


def check_errors(spec: UNet, batch: int, size: int, seed: int = 0) -> None:
    found = errors(spec, batch, size, seed)
    assert np.median(list(found.values())) < 0.02
    assert max(found.values()) < 0.05, max(found, key=lambda name: found[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_each_gradient_of_a_network_of_two_levels_is_close_to_that_in_float32(name):
    spec = replace(NETWORKS[name], channels=32, attention_resolutions=(16,), dropout=0.0)
    check_errors(spec, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_gradient_of_a_network_of_four_levels_is_close_to_that_in_float32(name, seed):
    """At its lowest level a sum has few terms, whose errors do not average out: 64 of the patches of 16 images."""
    spec = replace(NETWORKS[name], channels=32, channel_multipliers=(1, 2, 2, 2), num_res_blocks=2, dropout=0.0)
    spec = replace(spec, attention_resolutions=(16 // spec.patch_size,), middle_attention="normalised", remat=False)
    check_errors(spec, 16, 32, seed)
