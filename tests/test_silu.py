"""The activation: what it computes, its derivatives, and the memory that they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets import blocks, unet
from ddpm_jax.nets.unet import UNetSpec

PLACES = jnp.linspace(-30.0, 30.0, 601)


def derivatives(function, order):
    for _ in range(order):
        function = jax.grad(function)
    return jax.vmap(function)(PLACES)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_it_and_its_derivatives_are_those_of_x_sigmoid_x(order):
    expected = derivatives(lambda x: x / (1 + jnp.exp(-x)), order)
    np.testing.assert_allclose(derivatives(blocks.silu, order), expected, atol=5e-6)


def test_forward_and_reverse_derivatives_agree():
    _, forward = jax.jvp(blocks.silu, (PLACES,), (jnp.cos(PLACES),))
    np.testing.assert_allclose(forward, derivatives(blocks.silu, 1) * jnp.cos(PLACES), atol=1e-6)


@pytest.mark.parametrize("x", [-jnp.inf, -1e30, 1e30, jnp.inf, jnp.nan])
def test_far_out_it_is_what_jax_computes(x):
    np.testing.assert_array_equal(blocks.silu(jnp.asarray(x)), jax.nn.silu(x))


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the working memory of another compiler")
def test_a_backward_pass_needs_less_memory_than_with_the_derivative_that_jax_finds(monkeypatch):
    def working_memory():
        spec = UNetSpec(channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=())
        params = spec.init(jax.random.key(0), (16, 16, 3))
        z, t = jnp.ones((16, 16, 16, 3)), jnp.ones(16, jnp.int32)
        gradient = jax.jit(jax.grad(lambda params: jnp.sum(spec.bind(params)(z, t) ** 2)))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    ours = working_memory()
    for module in (blocks, unet):
        monkeypatch.setattr(module, "silu", jax.nn.silu)
    assert ours < 0.9 * working_memory()
