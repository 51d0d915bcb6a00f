"""What the compiler is told: it knows the words, and functions stay functions."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.devices.compiler import LIBRARY, WITHOUT_CONVOLUTIONS, compiler_options, jit
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.schedule import Linear
from ddpm_jax.diffusion.targets import V
from ddpm_jax.sampling import Ddim, sample


def test_this_version_of_xla_knows_the_options(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    compiler_options.cache_clear()
    assert compiler_options() == WITHOUT_CONVOLUTIONS
    compiler_options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", f"--{LIBRARY}=")  # the user's word holds
    assert compiler_options() == {}
    compiler_options.cache_clear()


def test_convolutions_are_not_given_to_the_slower_library():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = jax.ShapeDtypeStruct((8, 16, 16, 64), jnp.float32), jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
    lowered = jax.jit(convolve).lower(*shapes)
    assert "ynn_fusion" in lowered.compile().as_text()
    assert "ynn_fusion" not in lowered.compile(compiler_options=WITHOUT_CONVOLUTIONS).as_text()


def test_a_function_may_be_called_inside_others():
    """jax.jit refuses options inside another function that is compiled; here they are left out there."""
    cube = jit(lambda x: x**3)
    assert float(cube(2.0)) == 8.0
    assert float(jax.jit(lambda x: cube(x) + cube(2.0))(1.0)) == 9.0
    assert float(jax.jit(lambda: cube(jnp.ones(())))()) == 1.0
    assert float(jax.grad(cube)(2.0)) == 12.0
    np.testing.assert_array_equal(jax.vmap(cube)(jnp.arange(3.0)), [0.0, 1.0, 8.0])
    assert float(jax.lax.scan(lambda x, _: (cube(x), None), 2.0, None, length=2)[0]) == 512.0


def test_a_gradient_through_a_closure_is_taken():
    """A network that closes over what is differentiated, without `jit` around it."""

    def mean(scale):
        model = Denoiser(lambda z_t, t: scale * z_t, Linear(10).build(), target=V())
        return sample(jax.random.key(0), model, Ddim(3), (8, 3)).mean()

    slope = jax.grad(mean)(0.1)
    np.testing.assert_allclose(slope, (mean(0.11) - mean(0.09)) / 0.02, rtol=1e-2)
