"""Convolutions: what is done in parts is the same sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets.convolution import MOST_PARTS, PLACES, convolution, count_parts

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), "SAME"), ((2, 2), "SAME"), ((2, 2), ((1, 1), (1, 1)))], ids=str
)
def test_its_derivatives_are_those_of_a_convolution(strides, padding):
    """Values and slopes of both arguments, backwards and forwards, over three parts."""
    x, dx = (jax.random.normal(jax.random.key(i), (6, 24, 16, 3)) for i in range(2))
    kernel, dkernel = (jax.random.normal(jax.random.key(i), (3, 3, 3, 4)) for i in (3, 4))
    assert count_parts(x.shape) == 3

    @jax.jit
    def both(x, kernel, dx, dkernel):
        def derivatives(convolve):
            def apply(x, kernel):
                return convolve(x, kernel, strides, padding, **NHWC)

            y, slope = jax.vjp(apply, x, kernel)
            cotangent = jnp.sin(y)
            return y, slope(cotangent), jax.jvp(apply, (x, kernel), (dx, dkernel))[1]

        return derivatives(convolution), derivatives(jax.lax.conv_general_dilated)

    for ours, theirs in zip(*map(jax.tree.leaves, both(x, kernel, dx, dkernel)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_second_derivatives_exist():
    """Forwards over backwards: the convolution is bilinear, and its square has a known second derivative."""
    x, kernel = jnp.ones((2, 4, 4, 1)), jnp.ones((3, 3, 1, 1))

    def loss(kernel):
        return 0.5 * jnp.sum(convolution(x, kernel, (1, 1), "SAME", **NHWC) ** 2)

    # A sum of squares of linear functions is half its slope along the kernel itself.
    slope, change = jax.jvp(jax.grad(loss), (kernel,), (kernel,))
    np.testing.assert_allclose(slope, change, rtol=1e-6)
    np.testing.assert_allclose(jnp.vdot(slope, kernel), 2 * loss(kernel), rtol=1e-6)


def test_parts_are_equal_few_and_small():
    for size in (1, 4, 8, 32, 256):
        for batch in (1, 2, 7, 16, 100, 512):
            parts = count_parts((batch, size, size, 3))
            assert batch % parts == 0
            assert 1 <= parts <= MOST_PARTS
            more = [n for n in range(parts + 1, MOST_PARTS + 1) if batch % n == 0]
            assert batch // parts * size**2 <= PLACES or not more  # else as many as there may be
    assert count_parts((8, 32, 32, 128)) == 8
    assert count_parts((16, 8, 8, 24)) == 1
