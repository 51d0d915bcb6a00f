"""The U-Net: equal to an independent implementation, of the published size, and right in each of its options."""

import dataclasses
import math
from functools import partial

import diffusers_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop.names import diffusers_name, paths
from ddpm_jax.nets.blocks import AttentionBlock, Norms, norm
from ddpm_jax.nets.embed import seen, timestep_embedding
from ddpm_jax.nets.unet import UNet

# For what the comparison with diffusers does not cover: one level, with attention in the middle.
TINY = UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.5)
SHAPE = (8, 8, 3)
CASE = reference.Case(TINY, (2, *SHAPE))
LABELLED = dataclasses.replace(TINY, num_classes=10)

# A bound network is a pytree: one compilation for each spec.  Compiling costs more here than running does.
QUICKLY = {"xla_backend_optimization_level": 0}
apply = jax.jit(lambda net, z, t: net(z, t), compiler_options=QUICKLY)


def leaves(tree) -> list[tuple[str, jax.Array]]:
    """("layer/.../array", value) of every parameter."""
    return [("/".join(path), leaf) for path, leaf in paths(tree)]


def replace(net, **changes):
    """The same parameters in a network with other options."""
    return dataclasses.replace(net, spec=dataclasses.replace(net.spec, **changes))


@pytest.fixture(scope="module")
def net():
    """A tiny network in which every weight matters, also those that start near 0."""
    return TINY.bind(reference.parameters(CASE))


@pytest.fixture(scope="module")
def batch():
    z, _, _ = reference.inputs("tiny", CASE)
    return z, np.array([3, 700], np.int32)


@pytest.fixture(scope="module")
def output(net, batch):
    return np.asarray(apply(net, *batch))


# The published network.


LONGER = ("wide", "heads", "cifar")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONGER else []) for name in reference.CASES]
)
def test_it_computes_what_diffusers_computes_with_the_same_weights(name):
    """The stored outputs, and how they were made: tests/reference/diffusers_reference.py."""
    with np.load(reference.REFERENCE) as stored:
        expected = stored[name]
    assert expected.std() > 0.1
    np.testing.assert_allclose(reference.ours(name, reference.CASES[name], apply), expected, rtol=0, atol=1e-4)


def test_every_parameter_has_its_own_name_in_diffusers():
    case = reference.CIFAR10
    shapes = jax.eval_shape(lambda key: case.spec.init(key, case.shape[1:]), jax.random.key(0))
    found = [path for path, _ in paths(shapes)]
    names = {diffusers_name(path, levels=4) for path in found}
    assert len(names) == len(found)
    assert "up_blocks.0.resnets.2.time_emb_proj.weight" in names  # our up_3_block_2/embedding/kernel
    assert "mid_block.attentions.0.to_out.0.bias" in names
    with pytest.raises(ValueError, match="no layer of a U-Net is called sideways_1"):
        diffusers_name(("sideways_1", "conv1", "kernel"), levels=4)


@pytest.mark.parametrize(
    ("spec", "image_shape", "count"),
    [
        (UNet(), (32, 32, 3), 35_746_307),
        pytest.param(UNet(out_multiplier=2), (32, 32, 3), 35_749_766, marks=pytest.mark.slow),
        pytest.param(
            UNet(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
            (256, 256, 3),
            113_673_219,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_has_the_published_number_of_parameters(spec, image_shape, count):
    shapes = jax.eval_shape(lambda key: spec.init(key, image_shape), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


# Timesteps.


@pytest.mark.parametrize("size", [8, 9, 128])
def test_the_embedding_turns_at_frequencies_from_1_to_a_ten_thousandth(size):
    position, half = np.array([0, 1, 999]), size // 2
    frequency = 10_000.0 ** -(np.arange(half) / (half - 1))
    angle = position[:, None] * frequency
    got = np.asarray(jax.jit(timestep_embedding, static_argnums=1)(position, size))
    np.testing.assert_allclose(got[:, : 2 * half], np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=2e-4)
    np.testing.assert_array_equal(got[:, 2 * half :], 0)


@pytest.mark.parametrize("size", [2, 3])
def test_the_smallest_embeddings_are_finite(size):
    assert np.all(np.isfinite(timestep_embedding(jnp.array([5]), size)))


def test_the_first_timestep_is_embedded_as_position_0(net, batch):
    """sin 0 = 0 and cos 0 = 1: the first dense layer gives the sum of the second half of its rows."""

    @partial(jax.jit, compiler_options=QUICKLY)
    def embedded(params, z):
        def of_interest(module, _):
            return module.name == "embedding_0"

        module, (z, label) = TINY._module(3, False), seen(None, z, 1)
        _, state = module.apply(
            {"params": params}, z, label, None, capture_intermediates=of_interest, mutable=["intermediates"]
        )
        return state["intermediates"]["embedding_0"]["__call__"][0]

    layer = net.params["embedding_0"]
    expected = layer["kernel"][4:].sum(0) + layer["bias"]
    np.testing.assert_allclose(embedded(net.params, batch[0]), np.stack([expected, expected]), rtol=1e-5, atol=1e-6)


def test_one_timestep_for_all_is_that_timestep_for_each(net, batch, output):
    """And the output depends on the timestep, which takes groups of two channels or more."""
    got = np.asarray(apply(net, batch[0], np.int32(700)))
    np.testing.assert_allclose(got[1], output[1], atol=1e-5)
    assert np.abs(got[0] - output[0]).max() > 0.01


# Options.


def test_a_bound_network_is_a_function_and_a_pytree(net, batch, output):
    """It can be jitted, and passed through jit as an argument."""
    np.testing.assert_allclose(jax.jit(net)(*batch), output, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda predict, z, t: predict(z, t))(net, *batch), output, atol=1e-5)


def test_labels_change_the_output(batch):
    z, t = batch[0][:1].repeat(2, 0), np.full(2, 5)
    params = reference.parameters(reference.Case(LABELLED, (2, *SHAPE)))
    out = np.asarray(apply(LABELLED.bind(params, labels=jnp.array([0, 9])), z, t))
    same = np.asarray(apply(LABELLED.bind(params, labels=jnp.array([9, 9])), z, t))
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    np.testing.assert_allclose(out[1], same[1], atol=1e-5)
    assert np.abs(out[0] - same[0]).max() > 0.01


def test_labels_are_given_exactly_where_they_are_taken():
    with pytest.raises(ValueError, match=r"num_classes is 10; bind expects labels, \[batch\] integers, 0\.\.9"):
        LABELLED.bind({})
    with pytest.raises(ValueError, match="num_classes is None; bind expects no labels"):
        TINY.bind({}, labels=jnp.array([1]))
    for label in (-1, 10):
        with pytest.raises(ValueError, match=rf"labels = {label} is outside 0\.\.9"):
            LABELLED.bind({}, labels=jnp.array([3, label]))


@pytest.mark.parametrize("heads", [2, 4])
def test_heads_that_are_all_alike_attend_as_one(heads):
    """h heads with the same query q and key k: one head of h times the size has logits sqrt(h) q.k / sqrt(size)."""
    channels = 8
    shape = (2, 3, 4, channels)
    x = reference.numbers("x", shape)
    one, many = (AttentionBlock(count, Norms(4), "float32") for count in (1, heads))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: reference.weight(tuple(entry.key for entry in path), leaf.shape),
        jax.eval_shape(one.init, jax.random.key(0), jnp.zeros(shape))["params"],
    )
    for name in ("query", "key"):
        alike = {array: np.tile(leaf[..., : channels // heads], heads) for array, leaf in params[name].items()}
        params[name] = jax.tree.map(lambda leaf: 3 * leaf, alike)
    sharper = {**params, "query": jax.tree.map(lambda leaf: math.sqrt(heads) * leaf, params["query"])}
    expected = jax.jit(one.apply)({"params": params}, x)
    many_apply = jax.jit(many.apply)
    np.testing.assert_allclose(many_apply({"params": sharper}, x), expected, atol=1e-5)
    assert np.abs(many_apply({"params": params}, x) - expected).max() > 0.01


def test_bfloat16_is_close_and_its_parameters_and_output_are_float32(net, batch, output):
    half = replace(net, dtype="bfloat16")
    got = apply(half, *batch)
    assert got.dtype == jnp.float32
    error = np.abs(np.asarray(got) - output).max() / np.abs(output).max()
    assert 1e-4 < error < 0.05
    shapes = jax.eval_shape(lambda key: half.spec.init(key, SHAPE), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_remat_changes_neither_output_nor_gradient(net, batch):
    gradient = jax.jit(
        jax.value_and_grad(lambda net: (net(*batch) ** 2).mean(), allow_int=True), compiler_options=QUICKLY
    )
    (value, slope), (again, slope_again) = gradient(net), gradient(replace(net, remat=True))
    assert float(again) == pytest.approx(float(value), rel=1e-5)
    for (name, got), (_, expected) in zip(leaves(slope_again.params), leaves(slope.params), strict=True):
        scale = np.abs(expected).max()
        assert scale > 0, f"{name} has no gradient"
        np.testing.assert_allclose(got, expected, atol=1e-4 * scale + 1e-7, err_msg=name)


def test_dropout_is_on_where_a_key_is_given_and_a_function_of_it(net, batch, output):
    first, again, second = (
        np.asarray(apply(dataclasses.replace(net, dropout_key=jax.random.key(seed)), *batch)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - output).max() > 0.01
    assert np.abs(first - second).max() > 0.01


def test_dropout_of_rate_0_is_none(net, batch, output):
    certain = dataclasses.replace(replace(net, dropout=0.0), dropout_key=jax.random.key(1))
    np.testing.assert_allclose(apply(certain, *batch), output, atol=1e-5)


# The null label.


DROPPED = dataclasses.replace(TINY, num_classes=10, label_dropout=0.5)


@pytest.fixture(scope="module")
def droppable():
    """Parameters of a network with ten classes and a null label."""
    return reference.parameters(dataclasses.replace(CASE, spec=DROPPED))


def test_the_null_label_has_a_row_of_its_own(batch, droppable):
    table = droppable["class_embedding"]["embedding"]
    assert (DROPPED.null_label, len(table), LABELLED.null_label) == (10, 11, None)
    first = {**droppable, "class_embedding": {"embedding": table[:10]}}
    labels = np.array([3, 9])
    np.testing.assert_allclose(
        apply(DROPPED.bind(droppable, labels=labels), *batch), apply(LABELLED.bind(first, labels=labels), *batch)
    )
    without, with_label = (apply(DROPPED.bind(droppable, labels=np.full(2, label)), *batch) for label in (10, 9))
    assert np.abs(np.asarray(without) - with_label).max() > 0.01


def test_labels_are_dropped_in_training_as_often_as_asked(droppable):
    labels = jnp.zeros(4000, jnp.int32)
    net = DROPPED.bind(droppable, labels, dropout_key=jax.random.key(0))
    seen = np.asarray(net._seen_labels())
    assert set(seen.tolist()) == {0, 10}
    assert abs((seen != 0).mean() - 0.5) < 4 * math.sqrt(0.25 / 4000)
    np.testing.assert_array_equal(dataclasses.replace(net, dropout_key=None)._seen_labels(), labels)


def test_labels_beyond_the_null_label_are_an_error(droppable):
    for spec, last in ((LABELLED, 9), (DROPPED, 10)):
        with pytest.raises(ValueError, match=rf"labels = {last + 1} is outside 0..{last}"):
            spec.bind(droppable, labels=np.array([0, last + 1]))
        with pytest.raises(ValueError, match=rf"bind expects labels, \[batch\] integers, 0..{last}"):
            spec.bind(droppable)


# Shapes.


@pytest.mark.parametrize(
    ("channels", "image_channels"),
    [(2, 1), (5, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((24, 3), (50, 4)))],
)
def test_any_number_of_channels_will_do(channels, image_channels):
    spec = UNet(channels=channels, channel_multipliers=(1, 3), num_res_blocks=1, attention_resolutions=(3,))
    image_shape = (6, 10, image_channels)

    def run(key, z):
        return spec.bind(spec.init(key, image_shape))(z, 1)

    out = jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    assert out.shape == (2, *image_shape)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [(128, 32, 32), (48, 32, 24), (50, 32, 25), (32, 32, 16), (8, 8, 4), (7, 4, 1), (24, 5, 4), (2, 32, 1)],
)
def test_groups_are_the_most_that_divide_the_channels_and_have_two_or_more(channels, groups, expected):
    assert norm(channels, "norm", "float32", Norms(groups)).num_groups == expected


@pytest.mark.parametrize(
    ("image_shape", "message"),
    [
        ((30, 32, 3), "image height is 30; with 4 levels it must be divisible by 8: the nearest sizes are 24 and 32"),
        ((32, 33, 1), "image width is 33; with 4 levels it must be divisible by 8: the nearest sizes are 32 and 40"),
        ((4, 32, 3), "image height is 4; with 4 levels it must be divisible by 8: the nearest sizes are 8"),
    ],
)
def test_sizes_that_do_not_halve_evenly_are_an_error_that_names_the_nearest(image_shape, message):
    with pytest.raises(ValueError, match=message):
        UNet().init(jax.random.key(0), image_shape)
    with pytest.raises(ValueError, match=message):
        UNet().bind({})(jnp.zeros((1, *image_shape)), 1)


def test_an_image_shape_has_three_sizes():
    with pytest.raises(ValueError, match=r"image_shape is \(32, 32\); expected \(height, width, channels\)"):
        UNet().check_shape((32, 32))


# The start.


WIDE = dataclasses.replace(TINY, channels=32, num_classes=50)  # enough numbers for statistics
start = jax.jit(lambda key: WIDE.init(key, SHAPE), compiler_options=QUICKLY)


@pytest.mark.slow
def test_on_patches_it_is_the_network_of_the_smaller_image_whose_channels_are_the_pixels(key):
    small = UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), out_multiplier=2)
    patched = dataclasses.replace(small, patch_size=2)
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(partial(small.init, image_shape=(2, 3, 12)))(key))
    shapes = jax.eval_shape(partial(patched.init, image_shape=(4, 6, 3)), key)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    z = jax.random.normal(key, (2, 4, 6, 3))
    patches = jnp.stack([z[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=3).reshape(2, 2, 3, 12)
    seen = np.asarray(apply(small.bind(params), patches, 5))  # [2, 2, 3, 24]: 2 x 2 pixels of 6 channels
    got = np.asarray(apply(patched.bind(params), z, 5))
    for i, j in np.ndindex(2, 2):
        np.testing.assert_allclose(got[:, i::2, j::2], seen[..., 6 * (2 * i + j) :][..., :6], atol=1e-6)


def test_an_image_of_half_patches_is_an_error():
    with pytest.raises(ValueError, match="image height is 6; with 2 levels and patches of 2 it must be divisible by 4"):
        UNet(channels=8, channel_multipliers=(1, 1), patch_size=2).check_shape((6, 8, 3))


@pytest.fixture(scope="module")
def started():
    """Fresh parameters."""
    return start(jax.random.key(0))


def test_kernels_start_with_the_variance_of_the_published_formula(started):
    for name, value in leaves(started):
        value = np.asarray(value)
        *_, layer, array = name.split("/")
        if array in ("bias", "scale"):
            np.testing.assert_array_equal(value, float(array == "scale"), err_msg=name)
            continue
        mean_fan = (
            1.0 if array == "embedding" else math.prod(value.shape[:-2]) * (value.shape[-2] + value.shape[-1]) / 2
        )
        scale = 1e-10 if layer in ("conv2", "out", "conv_out") else 1.0
        normalised = value * math.sqrt(mean_fan / scale)
        noise = 5 / math.sqrt(value.size)  # five standard deviations, or more
        assert abs(normalised.mean()) < noise, name
        assert abs(normalised.var() - 1) < noise, name
        assert np.abs(normalised).max() <= math.sqrt(3) * (1 + 1e-6), name


def test_layers_start_independently(started):
    kernels = [np.asarray(value).ravel()[:100] for name, value in leaves(started) if name.endswith("kernel")]
    correlation = np.corrcoef(kernels) - np.eye(len(kernels))
    assert np.abs(correlation).max() < 0.5


def test_the_start_is_a_function_of_the_key(started):
    same, other = (start(jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, started)
    assert np.all(np.asarray(other["conv_in"]["kernel"]) != started["conv_in"]["kernel"])


def test_the_network_starts_as_zero(started, batch):
    out = np.asarray(apply(WIDE.bind(started, labels=jnp.array([0, 49])), *batch))
    assert 0 < np.abs(out).max() < 1e-3


# Specifications.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 0),
        ("channels", 1),
        ("channel_multipliers", ()),
        ("channel_multipliers", (1, 0)),
        ("num_res_blocks", 0),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("num_heads", 0),
        ("num_classes", 0),
        ("label_dropout", 1.0),
        ("label_dropout", 0.1),
        ("out_multiplier", 0),
        ("norm_groups", 0),
        ("patch_size", 0),
        ("dtype", "float16"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(unchecked, field, value):
    with pytest.raises(ValueError, match=f"{field} is .*expected"):
        UNet(**{field: value})


def test_heads_divide_the_channels_of_every_level():
    UNet(channels=12, channel_multipliers=(1, 3), num_heads=6)
    with pytest.raises(ValueError, match="num_heads is 6, which does not divide the 32 channels of level 1"):
        UNet(channels=32, channel_multipliers=(3, 1), num_heads=6)


def test_a_spec_is_a_value():
    assert UNet() == UNet()
    assert hash(UNet()) == hash(UNet(channel_multipliers=(1, 2, 2, 2)))
