"""Where arrays lie, and what a step does with them: on a mesh, in parts, and over all of a data set."""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import Mesh, PartitionSpec

import ddpm_jax
from ddpm_jax.data import Arrays, Digits
from ddpm_jax.data.images import to_unit
from ddpm_jax.data.map_examples import numbers, over_examples
from ddpm_jax.data.stream import batches
from ddpm_jax.devices.mesh import MeshShape, check_divides, global_batch, local_rows
from ddpm_jax.diffusion.bound import bound
from ddpm_jax.diffusion.objective import draw
from ddpm_jax.diffusion.schedule import Linear
from ddpm_jax.nets import Network
from ddpm_jax.training.cost import saved_for_backward
from ddpm_jax.training.loop import train
from ddpm_jax.training.step import by_quarter


@pytest.mark.parametrize(
    ("shape", "fsdp", "expected"),
    [
        ((3, 3, 128, 256), 8, (None, None, None, "fsdp")),
        ((3, 3, 256, 128), 8, (None, None, "fsdp", None)),
        ((256, 256), 8, (None, "fsdp")),
        ((250, 256), 5, ("fsdp", None)),
        ((251, 257), 8, ()),
        ((128,), 8, ()),
        ((256, 256), 1, ()),
        ((), 8, ()),
    ],
)
def test_the_longest_axis_that_divides_is_cut(shape, fsdp, expected):
    assert MeshShape().partition(shape, fsdp) == PartitionSpec(*expected)


def test_a_mesh_has_all_devices():
    for fsdp in (1, 2, 8):
        assert dict(MeshShape(fsdp=fsdp).build().shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    with pytest.raises(ValueError, match=r"mesh.fsdp is 3; expected a divisor of the number of devices, 8: 1, 2, 4, 8"):
        MeshShape(fsdp=3).build()
    with pytest.raises(ValueError, match=r"mesh.data is 3; expected 4, as 8 devices / fsdp 2"):
        MeshShape(data=3, fsdp=2).build()


def test_devices_share_a_batch_equally():
    check_divides(mesh_of(4), 8, accumulate=2)
    with pytest.raises(ValueError, match="batch_size is 2, which 4 devices cannot share equally; try 4"):
        check_divides(mesh_of(4), 2)
    with pytest.raises(
        ValueError, match="batch_size is 12, which 4 devices cannot share equally in 2 parts; try 8 or 16"
    ):
        check_divides(mesh_of(2, 2), 12, accumulate=2)


@dataclass(frozen=True)
class Taylor(Network):
    """A small network whose every parameter counts: a polynomial in z_t with coefficients of each timestep."""

    def init(self, key, image_shape):
        return 0.3 * jax.random.normal(key, (21, 3))

    def bind(self, params):
        def predict(z_t, t):
            c = params[t][..., None, None, None]
            return c[:, 0] + c[:, 1] * z_t + c[:, 2] * z_t**2

        return predict


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, parts):
    """For any weights; and the losses come back in the order of the examples."""
    experiment = dataclasses.replace(tiny, net=Taylor())
    params, recipe = experiment.net.init(jax.random.key(0), ()), experiment.recipe()
    batch = {"image": Digits().arrays["image"][:16]}
    draws = draw(jax.random.key(1), recipe.process, (16, 8, 8, 1))
    examples = batch, to_unit(batch["image"]), draws, jnp.linspace(0.5, 2.0, 16)
    losses, gradient = jax.jit(recipe.gradient)(params, examples, jax.random.key(2))
    cut = dataclasses.replace(recipe, accumulate=parts)
    again, added = jax.jit(cut.accumulated_gradient)(params, examples, jax.random.key(2))
    assert np.ptp(losses) > 0.1
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    np.testing.assert_allclose(added, gradient, atol=1e-6)


@dataclass(frozen=True)
class Convolutions(Network):
    """A small network that compiles in no time, with dropout."""

    dropout: float = 0.1
    is_random: ClassVar[bool] = True

    def init(self, key, image_shape):
        shapes = {"first": (3, 3, 1, 16), "second": (3, 3, 16, 16), "last": (3, 3, 16, 1), "times": (21, 16)}
        keys = jax.random.split(key, len(shapes))
        return {name: 0.2 * jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}

    def bind(self, params, dropout_key=None):
        def conv(h, name):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(h, params[name], (1, 1), "SAME", dimension_numbers=layout)

        def predict(z_t, t):
            h = jax.nn.silu(conv(z_t, "first") + params["times"][t][:, None, None])
            if dropout_key is not None:
                h = h * jax.random.bernoulli(dropout_key, 1 - self.dropout, h.shape)
            return conv(jax.nn.silu(conv(h, "second")), "last")

        return predict


@pytest.fixture(scope="module", params=["convolutions", pytest.param("U-Net", marks=pytest.mark.slow)])
def cut(tiny, request):
    """`tiny`, whose small arrays are sharded too.

    Adam would move a parameter whose gradient is 0 but for rounding, such as the keys' bias; a larger eps forbids it.
    """
    net = tiny.net if request.param == "U-Net" else Convolutions()
    optimizer = dataclasses.replace(tiny.optimizer, eps=1e-6)
    return dataclasses.replace(tiny, net=net, mesh=MeshShape(min_shard_size=64), optimizer=optimizer)


def compiled(experiment, mesh):
    """(the compiled step, its plan)."""
    plan = experiment.plan(mesh)
    return plan.step().lower(plan.state, plan.batch, jax.eval_shape(lambda: jax.random.key(0))).compile(), plan


@pytest.fixture(scope="module")
def compiled_on(cut):
    """compiled_on(data, fsdp): (the compiled step, its plan)."""
    return cache(lambda data, fsdp: compiled(cut, mesh_of(data, fsdp)))


@pytest.fixture(scope="module")
def on(cut, compiled_on):
    """on(data, fsdp): (the state after 20 steps, their losses)."""

    @cache
    def after_20_steps(data, fsdp):
        mesh = mesh_of(data, fsdp)
        program, plan = compiled_on(data, fsdp)
        used = plan.batch
        state = plan.fresh_state()
        stream, losses = batches(cut.data, cut.batch_size, cut.seed), []
        for _ in range(20):
            batch = global_batch(mesh, numbers(next(stream)), cut.batch_size)
            state, metrics = program(state, {name: batch[name] for name in used}, jax.random.key(cut.seed))
            losses.append(float(metrics["loss"]))  # and so in step: virtual devices may not run far ahead
        return jax.device_get(state), losses

    return after_20_steps


@pytest.mark.parametrize(
    ("data", "fsdp"), [*(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((8, 1), (1, 8))), (4, 2)]
)
def test_any_mesh_gives_the_same_run(on, data, fsdp):
    """The batch over 8 devices, the state over 8, and 4 copies of it over 2 devices each; against 1 device."""
    (state, losses), (expected, expected_losses) = on(data, fsdp), on(1, 1)
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(tree) for tree in (state, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("first", "then"), [((1, 8), (1, 1)), ((1, 1), (4, 2))])
def test_a_run_goes_on_on_another_mesh(cut, tmp_path, first, then):
    """Saved in parts and restored whole, or the other way round: the same run, to rounding."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    train(cut, whole, mesh_of(1))
    train(dataclasses.replace(cut, num_steps=3), moved, mesh_of(*first))
    train(cut, moved, mesh_of(*then))
    one, other = (ddpm_jax.load_run(folder, mesh_of(8)) for folder in (whole, moved))
    assert (one.step, other.step) == (6, 6)
    for ours, theirs in zip(jax.tree.leaves(other.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def collectives(program) -> dict[str, list[list[tuple[int, ...]]]]:
    """The collectives of a compiled program: for each kind, the shapes of the float arrays that each one moves."""
    found = {}
    for moved, kind in re.findall(r"= (\S.*?) (all-\w+|reduce-scatter|collective-\w+)\(", program.as_text()):
        sizes = re.findall(r"f32\[([\d,]*)\]", moved)
        found.setdefault(kind, []).append([tuple(map(int, filter(None, size.split(",")))) for size in sizes])
    return found


def test_data_parallel_steps_reduce_the_gradient_once(compiled_on):
    program, plan = compiled_on(8, 1)
    found = collectives(program)
    assert found.keys() == {"all-reduce"}
    assert len(found["all-reduce"]) == 1
    moved = sum(map(math.prod, found["all-reduce"][0]))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(plan.state.params))
    assert parameters <= moved < parameters + 100  # and the sums that the metrics are made of


def test_sharded_parameters_are_gathered_once_each(compiled_on):
    """And are all that is gathered: no activation goes from device to device, and each device holds its part."""
    program, plan = compiled_on(1, 8)
    found = collectives(program)
    sharded = [leaf.shape for leaf in jax.tree.leaves(plan.state.params) if leaf.sharding.spec != PartitionSpec()]
    assert len(sharded) >= 4
    assert found.keys() == {"all-gather", "all-reduce"}
    assert sorted(shape for shapes in found["all-gather"] for shape in shapes) == sorted(sharded)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.state))
    assert program.memory_analysis().argument_size_in_bytes < whole / 2


@pytest.mark.slow
def test_what_a_dry_run_says_of_memory_is_what_the_step_needs(tiny):
    """At most twice what the compiler makes of it, for a batch that outweighs the parameters; half of it in 2 parts."""
    net = dataclasses.replace(tiny.net, channels=16, channel_multipliers=(1, 2))
    large = dataclasses.replace(tiny, net=net, batch_size=128)
    kept = 128 * saved_for_backward(large.plan(mesh_of(1)))
    needed = [
        compiled(option, mesh_of(1))[0].memory_analysis().temp_size_in_bytes
        for option in (large, dataclasses.replace(large, accumulate=2))
    ]
    assert 0.9 * needed[0] < kept < 2 * needed[0]
    assert needed[1] < 0.6 * needed[0]


@pytest.mark.slow
def test_remat_keeps_little_for_the_backward_pass(tiny):
    net = dataclasses.replace(tiny.net, channels=16, channel_multipliers=(1, 2))
    kept = []
    for remat in (False, True):
        option = dataclasses.replace(tiny, net=dataclasses.replace(net, remat=remat))
        kept.append(saved_for_backward(option.plan(mesh_of(1))))
    assert kept[1] < kept[0] / 4


def test_the_loss_is_told_by_quarter_of_t():
    losses, t = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]), jnp.array([1, 250, 251, 750, 1000])
    told = by_quarter(losses, Linear(1000).build().share(t))
    np.testing.assert_array_equal(told["quarter_sum"], [3, 3, 4, 5])
    np.testing.assert_array_equal(told["quarter_count"], [2, 1, 1, 1])
    for num_steps in (7, 20, 1000, 4000):  # compiled, as in training: no t is rounded into another quarter
        t = jnp.arange(1, num_steps + 1)
        told = jax.jit(lambda process, t: by_quarter(t / 1, process.share(t)))(Linear(num_steps).build(), t)
        expected = np.bincount((np.asarray(t) - 1) * 4 // num_steps)
        np.testing.assert_array_equal(told["quarter_count"], expected)


def test_rows_lie_on_the_devices_in_the_order_of_the_mesh():
    """Also where that is not the order of the devices' numbers, as on a TPU's torus."""
    devices = np.array(jax.devices())[[3, 1, 7, 0, 2, 6, 5, 4]].reshape(4, 2)
    mesh = Mesh(devices, ("data", "fsdp"))
    rows = np.arange(16)
    np.testing.assert_array_equal(local_rows(mesh, 16), rows)
    batch = global_batch(mesh, {"label": rows}, 16)["label"]
    np.testing.assert_array_equal(batch, rows)
    np.testing.assert_array_equal(next(s.data for s in batch.addressable_shards if s.device.id == 7), [4, 5])


def test_every_example_counts_once_whatever_the_devices():
    """13 examples on 8 devices, 1 or 2 at a time on each: all are seen, with their own numbers."""
    images = np.random.default_rng(0).integers(0, 256, (13, 2, 2, 1), np.uint8)
    source = Arrays.of(images, np.arange(13) % 3)

    def function(batch, first):
        return {
            "sum": jnp.sum(batch["image"].astype(jnp.int32), (1, 2, 3)),
            "number": first + jnp.arange(len(batch["image"])),
        }

    for mesh, chunk in ((mesh_of(8), 1), (mesh_of(4, 2), 2), (mesh_of(1), 5)):
        found = over_examples(function, source, mesh, chunk)
        np.testing.assert_array_equal(found["sum"], images.sum((1, 2, 3)))
        np.testing.assert_array_equal(found["number"], np.arange(13))


@pytest.mark.slow
def test_the_bound_of_a_split_is_the_same_on_any_mesh(tiny, key):
    experiment = dataclasses.replace(tiny, net=Convolutions())
    source = Arrays.of(Digits(split="test").arrays["image"][:11])
    params = experiment.net.init(key, (8, 8, 1))
    one, eight = (ddpm_jax.Run(experiment, 0, params, (8, 8, 1), mesh_of(count), 0.9) for count in (1, 8))
    bits = one.bits_per_dim(key, source, num_steps=3, chunk=4)
    assert bits.shape == (11,)
    np.testing.assert_allclose(eight.bits_per_dim(key, source, num_steps=3), bits, rtol=1e-5)
    direct = bound(key, one.model(), to_unit(source.arrays["image"]), num_steps=3).bits_per_dim
    np.testing.assert_allclose(bits, direct, rtol=1e-5)
    with pytest.raises(ValueError, match=r"source is .*; expected one with labels"):
        dataclasses.replace(one, experiment=tiny).bits_per_dim(key, source)
