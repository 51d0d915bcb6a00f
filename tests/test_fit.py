"""Small networks, trained in one call."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Factors

from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.diffusion.targets import X
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

DATA = Mixture.of([0.5, 0.5], [[-0.6, 0.0], [0.6, 0.0]], 0.2)
NET = Mlp(width=32, depth=1)


@pytest.fixture(scope="module")
def recipe():
    return Recipe(NET, Cosine(20).build(), X(), update=optax.adam(1e-2))


def draw_x(key):
    return DATA.sample(key, 64)


@pytest.mark.slow
def test_it_learns_the_denoiser(recipe):
    """The loss comes down to that of E[x | z_t], the least there is."""
    state, losses = fit(jax.random.key(0), recipe, draw_x, 400)
    t = jnp.repeat(jnp.arange(1, 21), 50)
    x = DATA.sample(jax.random.key(1), len(t))
    eps = jax.random.normal(jax.random.key(2), x.shape)
    z_t = diffuse(recipe.process, x, t, eps)
    best = DATA.denoiser(recipe.process).predict(z_t, t)
    learned = NET.bind(state.params)(z_t, t)
    assert float(losses[0]) > 0.15
    assert float(jnp.mean((learned - best) ** 2)) < 0.05 * float(jnp.mean(x**2))


def test_it_goes_on_where_it_stood(recipe):
    """Steps 1-3 and then 4-6 are steps 1-6: what is drawn depends on (key, step) only."""
    recipe = replace(recipe, net=Factors())

    def draw_x(key):
        return DATA.sample(key, 64)[..., None, None]

    whole, losses = fit(jax.random.key(0), recipe, draw_x, 6)
    half, first = fit(jax.random.key(0), recipe, draw_x, 3)
    rest, second = fit(jax.random.key(0), recipe, draw_x, 3, half)
    np.testing.assert_allclose(jnp.concatenate([first, second]), losses, rtol=1e-6)
    assert int(rest.step) == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), rest.params, whole.params)


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 1)])
def test_the_network_takes_any_shape(shape):
    for multiplier in (1, 2) if shape else (1,):
        spec = Mlp(width=8, depth=2, waves=multiplier - 1, out_multiplier=multiplier)
        predict = spec.bind(spec.init(jax.random.key(0), shape))
        out = predict(jnp.zeros((5, *shape)), 3)
        assert out.shape == ((5, *shape) if multiplier == 1 else (5, *shape[:-1], 2 * shape[-1]))


@pytest.mark.parametrize("field", ["width", "depth", "out_multiplier", "waves"])
def test_what_is_no_network(field):
    with pytest.raises(ValueError, match=field):
        Mlp(**{field: -1})


def test_no_steps_are_refused(recipe):
    with pytest.raises(ValueError, match="num_steps is 0"):
        fit(jax.random.key(0), recipe, draw_x, 0)
