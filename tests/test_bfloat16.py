"""Gradients in bfloat16: as close to those in float32 as 8 bits allow, as every long sum is in float32."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nets.init import ALMOST_ZERO_LAYERS
from ddpm_jax.nets.layers import conv, dense
from ddpm_jax.nets.unet import UNet

SMALL = UNet(8, (1, 2), 1, (8,), dropout=0.0)
NETWORKS = {
    "as published": SMALL,
    "with every option": replace(
        SMALL,
        adaptive_norm=True,
        num_classes=5,
        label_dropout=0.2,
        patch_size=2,
        attention_resolutions=(4,),
        out_multiplier=2,
        head_channels=4,
        dropout=0.1,
        middle_attention="plain",
        frequency_shift=0.0,
        cos_first=True,
        pad_both_sides=True,
        remat=True,
    ),
}
# The most terms that a sum of bfloat16 numbers may have: an upsampled position has four.
FEW = 4


def case(spec: UNet, batch: int, size: int):
    """(loss of the parameters and the dtype, parameters): kernels that start at zero are not, as in training."""
    keys = jax.random.split(jax.random.key(0), 6)
    params = spec.init(keys[0], (size, size, 3))

    def trained(path, leaf):
        names = [entry.key for entry in path]
        at_zero = names[-1] == "kernel" and names[-2] in ALMOST_ZERO_LAYERS
        return 0.05 * jax.random.normal(jax.random.fold_in(keys[1], len(str(path))), leaf.shape) if at_zero else leaf

    z = jax.random.normal(keys[2], (batch, size, size, 3))
    t = jax.random.randint(keys[3], (batch,), 1, 1001)
    eps = jax.random.normal(keys[4], (batch, size, size, 3 * spec.out_multiplier))
    labels = None if spec.num_classes is None else jax.random.randint(keys[5], (batch,), 0, spec.num_classes)

    def loss(params, dtype):
        net = replace(spec, dtype=dtype)
        return jnp.mean((net.bind(params, labels, keys[0] if spec.dropout else None)(z, t) - eps) ** 2)

    return loss, jax.tree_util.tree_map_with_path(trained, params)


def equations(jaxpr) -> Iterator:
    """All equations of a program, those inside calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(dict(equation.params), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def long_sums(function, *args) -> list[str]:
    """The sums of more than FEW numbers that are added up in bfloat16."""
    found = []
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        name, out = equation.primitive.name, equation.outvars[0].aval
        reduces = name == "reduce_sum" and equation.invars[0].aval.size > FEW * out.size
        if (reduces or name.startswith("scatter-add") or name == "cumsum") and out.dtype == jnp.bfloat16:
            found.append(str(equation))
    return found


@pytest.mark.parametrize("name", [pytest.param("as published", marks=pytest.mark.slow), "with every option"])
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


def errors(spec: UNet, batch: int, size: int) -> dict[str, float]:
    """The relative error of the gradient of each leaf, apart from the bias of attention's keys, whose gradient is 0."""
    loss, params = case(spec, batch, size)
    exact, rounded = (jax.jit(jax.grad(lambda p, d=d: loss(p, d)))(params) for d in ("float32", "bfloat16"))
    found = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a)), exact, rounded)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    by_name = {"/".join(entry.key for entry in path): error for path, error in leaves}
    return {name: error for name, error in by_name.items() if not name.endswith("key/bias")}


def check_errors(spec: UNet, batch: int, size: int) -> None:
    found = errors(spec, batch, size)
    assert np.median(list(found.values())) < 0.02
    assert max(found.values()) < 0.05, max(found, key=lambda name: found[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_each_gradient_of_a_network_of_two_levels_is_close_to_that_in_float32(name):
    spec = replace(NETWORKS[name], channels=32, attention_resolutions=(16,), dropout=0.0)
    check_errors(spec, 32, 32)
