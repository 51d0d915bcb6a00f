"""The activation and the convolution: what they compute, their derivatives, and the memory that they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.devices import convolution
from ddpm_jax.nets import blocks, layers, unet_module
from ddpm_jax.nets.unet import UNet

PLACES = jnp.linspace(-30.0, 30.0, 601)
X = jax.random.normal(jax.random.key(0), (3, 6, 8, 3))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))


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


CONVOLUTIONS = {
    "plain": ((1, 1), "SAME"),
    "halving": ((2, 2), "SAME"),
    "halving, padded at both ends": ((2, 2), [(1, 1), (1, 1)]),
    "of another stride in each direction": ((1, 2), [(0, 1), (2, 0)]),
}


@pytest.fixture(params=CONVOLUTIONS, scope="module")
def pair(request):
    """The convolution that transposes its kernel late, and JAX's."""
    strides, padding = CONVOLUTIONS[request.param]
    options = {"dimension_numbers": jax.lax.conv_dimension_numbers(X.shape, KERNEL.shape, ("NHWC", "HWIO", "NHWC"))}
    return tuple(
        lambda x, kernel, function=function: function(x, kernel, strides, padding, **options)
        for function in (convolution.convolve, jax.lax.conv_general_dilated)
    )


def wavy(convolve):
    return lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel)))


# What research code does with a network: all of these must not tell the two apart.
WAYS = {
    "as it is": lambda f: f,
    "compiled": jax.jit,
    "in reverse": lambda f: jax.grad(wavy(f), (0, 1)),
    "forward": lambda f: lambda x, kernel: jax.jvp(f, (x, kernel), (jnp.cos(x), jnp.cos(kernel))),
    "forward over reverse": lambda f: (
        lambda x, kernel: jax.jvp(jax.grad(wavy(f), (0, 1)), (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
    ),
    "reverse over forward": lambda f: jax.grad(
        lambda x, kernel: jnp.sum(jax.jvp(f, (x, kernel), (x, kernel))[1] ** 2), (0, 1)
    ),
    "linearised": lambda f: lambda x, kernel: jax.linearize(f, x, kernel)[1](jnp.cos(x), jnp.cos(kernel)),
    "recomputed": lambda f: jax.grad(jax.checkpoint(wavy(f)), (0, 1)),
    "of many kernels": lambda f: lambda x, kernel: jax.vmap(f, (None, 0))(x, jnp.stack([kernel, 2 * kernel])),
    "of many of both": lambda f: lambda x, kernel: jax.vmap(f)(jnp.stack([x, -x]), jnp.stack([kernel, 2 * kernel])),
    "gradient of each example": lambda f: (
        lambda x, kernel: jax.vmap(
            lambda x: jax.grad(wavy(f), 1)(x[None], kernel),
        )(x)
    ),
    "in a loop": lambda f: lambda x, kernel: jax.lax.map(lambda scale: f(scale * x, kernel), jnp.arange(3.0)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_convolution_is_that_of_jax_under_every_transformation(pair, way):
    ours, theirs = (WAYS[way](convolve)(X, KERNEL) for convolve in pair)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_an_infinite_gradient_of_an_image_leaves_the_others_alone(pair):
    def by_x(convolve):
        out, back = jax.vjp(lambda x: convolve(x, KERNEL), X)
        return back(jnp.ones_like(out).at[0].set(jnp.inf))[0]

    ours, theirs = map(by_x, pair)
    assert np.isfinite(theirs[1:]).all()
    assert not np.isfinite(theirs[0]).all()
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-5, atol=1e-5)


def test_a_wrong_shape_is_the_error_that_it_is_in_jax(pair):
    for convolve in pair:
        with pytest.raises(ValueError, match="feature dimension"):
            convolve(X, KERNEL[:, :, :2])


def working_memory(spec, shape):
    """Bytes that the gradient of a network works in, beside its arguments and results."""
    params = spec.init(jax.random.key(0), shape[1:])
    z, t = jnp.ones(shape), jnp.ones(shape[0], jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(spec.bind(params)(z, t) ** 2)))
    return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes


ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the working memory of another compiler")


@pytest.mark.slow
@ON_CPU
def test_a_backward_pass_needs_less_memory_than_with_the_derivative_that_jax_finds(monkeypatch):
    spec = UNet(channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=())
    ours = working_memory(spec, (16, 16, 16, 3))
    for module in (blocks, unet_module):
        monkeypatch.setattr(module, "silu", jax.nn.silu)
    assert ours < 0.9 * working_memory(spec, (16, 16, 16, 3))


@pytest.mark.slow
@ON_CPU
def test_a_backward_pass_does_not_keep_all_transposed_kernels(monkeypatch):
    spec = UNet(channels=64, channel_multipliers=(1, 1), num_res_blocks=2, attention_resolutions=())
    ours = working_memory(spec, (1, 8, 8, 3))
    monkeypatch.setattr(layers, "convolve", jax.lax.conv_general_dilated)
    assert ours < 0.7 * working_memory(spec, (1, 8, 8, 3))
