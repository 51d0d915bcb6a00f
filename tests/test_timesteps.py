"""The rules for drawing timesteps: what they draw, that their weights keep the mean, and what they remember."""

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax.diffusion.arrays import stream
from ddpm_jax.diffusion.objective import draw
from ddpm_jax.diffusion.schedule import Linear
from ddpm_jax.diffusion.timesteps import LossAwareTimesteps, LossHistory, StratifiedTimesteps, UniformTimesteps

T = 7
CHAIN = Linear(num_steps=T).build()
RULES = (UniformTimesteps(), StratifiedTimesteps(), LossAwareTimesteps(length=3))


@partial(jax.jit, static_argnums=(0, 4))
def draw_many(rule, keys, memory, process, batch):
    """(t, weight), [keys, batch]."""
    return jax.vmap(lambda key: rule.draw(key, memory, process, batch))(keys)


update = jax.jit(lambda rule, *arguments: rule.update(*arguments), static_argnums=0)
probabilities = jax.jit(lambda rule, memory: rule.probabilities(memory), static_argnums=0)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), 4000)


@pytest.fixture(scope="module")
def memory():
    """Three losses of each of seven timesteps, of sizes that differ by orders of magnitude."""
    losses = np.random.default_rng(0).gamma(2.0, size=(T, 3)) * 10.0 ** np.arange(-3, 4)[:, None]
    return LossHistory(jnp.asarray(losses, jnp.float32), jnp.full(T, 5))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_each_timestep_is_equally_likely_and_weighs_1(rule, keys):
    """Before anything is remembered; at each place in the batch."""
    t, weight = draw_many(rule, keys, rule.start(CHAIN), CHAIN, 6)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)
    assert t.dtype == jnp.int32
    for column in np.asarray(t).T:
        values, counts = np.unique(column, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(1, T + 1))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_uniform_timesteps_are_those_of_the_loss(key):
    t, _ = UniformTimesteps().draw(stream(key, "t"), (), CHAIN, 64)
    np.testing.assert_array_equal(t, draw(key, CHAIN, (64, 2)).t)


@pytest.mark.parametrize(("num_steps", "batch"), [(7, 6), (1000, 32), (4, 12), (1, 3)])
def test_a_stratified_batch_covers_the_steps_evenly(keys, num_steps, batch):
    """Each of `batch` equal parts of a circle of T steps holds one: any run of steps has its share, or nearly."""
    t, _ = draw_many(StratifiedTimesteps(), keys[:200], (), Linear(num_steps).build(), batch)
    t = np.sort(np.asarray(t), axis=1)
    assert t.min() >= 1
    assert t.max() <= num_steps
    for last in np.unique(np.linspace(1, num_steps, 7).astype(int)):
        count = (t <= last).sum(1)
        share = batch * last / num_steps
        assert np.all(np.abs(count - share) < 1 + 1e-6)
    if batch % num_steps == 0:
        np.testing.assert_array_equal(t, np.tile(np.repeat(np.arange(1, num_steps + 1), batch // num_steps), (200, 1)))


def test_probabilities_are_the_root_mean_squares_mixed_with_even_ones(memory):
    for share in (0.001, 0.3, 1.0):
        size = np.sqrt(np.mean(np.asarray(memory.losses, np.float64) ** 2, axis=1))
        expected = (1 - share) * size / size.sum() + share / T
        got = probabilities(LossAwareTimesteps(length=3, uniform_share=share), memory)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert float(got.sum()) == pytest.approx(1, abs=1e-6)


def test_they_are_uniform_until_every_timestep_has_enough_losses(memory):
    rule = LossAwareTimesteps(length=3)
    for lacking in (0, 2):
        few = memory.replace(count=memory.count.at[4].set(lacking))
        np.testing.assert_allclose(probabilities(rule, few), 1 / T, rtol=1e-6)
    enough = memory.replace(count=memory.count.at[4].set(3))
    assert float(probabilities(rule, enough).max()) > 0.5


def test_losses_that_are_all_0_leave_them_uniform(memory):
    zero = memory.replace(losses=jnp.zeros_like(memory.losses))
    np.testing.assert_allclose(probabilities(LossAwareTimesteps(length=3), zero), 1 / T, rtol=1e-6)


@pytest.mark.parametrize("share", [0.001, 0.3])
def test_draws_follow_the_probabilities_and_their_weights_keep_the_mean(keys, memory, share):
    """E[weight loss_t] = mean of loss_t over t, as a sum over t of p weight loss: for any loss."""
    rule = LossAwareTimesteps(length=3, uniform_share=share)
    p = np.asarray(probabilities(rule, memory), np.float64)
    t, weight = (np.asarray(a).ravel() for a in draw_many(rule, keys, memory, CHAIN, 25))
    counts = np.bincount(t - 1, minlength=T)
    assert scipy.stats.chisquare(counts, p / p.sum() * counts.sum()).pvalue > 1e-3
    np.testing.assert_allclose(weight * T * p[t - 1], 1.0, rtol=1e-5)
    weight_of = np.zeros(T)
    weight_of[t - 1] = weight
    seen = counts > 0
    assert p[~seen].sum() < 1e-3
    weight_of[~seen] = 1 / (T * p[~seen])
    losses = np.random.default_rng(1).normal(size=(5, T))
    np.testing.assert_allclose(losses @ (p * weight_of), losses.mean(1), rtol=1e-5)


def test_the_loss_has_less_variance_where_the_terms_differ_in_size(keys, memory):
    """What it is for: with p in proportion to |loss_t|, weight loss_t hardly varies."""
    losses = np.sqrt(np.mean(np.asarray(memory.losses, np.float64) ** 2, axis=1))
    estimates = []
    for rule in (UniformTimesteps(), LossAwareTimesteps(length=3)):
        t, weight = (np.asarray(a) for a in draw_many(rule, keys, memory, CHAIN, 25))
        estimates.append((weight * losses[t - 1]).mean(1))
    for estimate in estimates:
        error = estimate.std() / np.sqrt(len(keys))
        assert abs(estimate.mean() - losses.mean()) < 4 * error
    assert estimates[1].std() < 0.05 * estimates[0].std()


@pytest.mark.parametrize("length", [1, 3])
def test_the_last_losses_are_kept_like_a_loop_over_the_batch(length):
    """A deque of each timestep's last losses, one loss pushed after the other; repeats, more than it holds, too."""
    rng, rule = np.random.default_rng(0), LossAwareTimesteps(length=length)
    memory, kept, count = rule.start(CHAIN), [deque(maxlen=length) for _ in range(T)], np.zeros(T, int)
    for step in range(12):
        t = rng.integers(1, T + 1, 16) if step % 3 else rng.integers(2, 4, 16)
        losses = rng.normal(size=16).astype(np.float32)
        memory = update(rule, memory, CHAIN, jnp.asarray(t, jnp.int32), jnp.asarray(losses))
        for one, loss in zip(t, losses, strict=True):
            kept[one - 1].append(loss)
            count[one - 1] += 1
        np.testing.assert_array_equal(memory.count, count)
        for row, own in zip(np.asarray(memory.losses), kept, strict=True):
            np.testing.assert_array_equal(np.sort(row[: len(own)]), np.sort(own))
            assert np.all(row[len(own) :] == 0)
    assert min(count) > length


@pytest.mark.parametrize("length", [1, 3])
def test_no_place_is_written_twice_and_the_last_losses_of_a_batch_are(length):
    """Also where a batch has more draws of one t than are remembered: a scatter may write in any order."""
    rng, rule = np.random.default_rng(length), LossAwareTimesteps(length=length)
    for _ in range(5):
        index = rng.integers(0, 4, 16)
        row, place = (
            np.asarray(a) for a in rule._places(jnp.asarray(rng.integers(0, 9, 4), jnp.int32), jnp.asarray(index))
        )
        last = [np.sum(index[i + 1 :] == index[i]) < length for i in range(len(index))]
        np.testing.assert_array_equal(row, np.where(last, index, 4))
        written = list(zip(row[last], place[last], strict=True))
        assert len(set(written)) == len(written)
        assert 0 <= place.min() <= place.max() < length


def test_the_oldest_loss_goes_first():
    rule = LossAwareTimesteps(length=3)
    process = Linear(num_steps=2).build()
    memory = rule.start(process)
    for loss in range(1, 6):
        memory = update(rule, memory, process, jnp.array([2]), jnp.array([float(loss)]))
    np.testing.assert_array_equal(memory.losses, [[0, 0, 0], [4, 5, 3]])
    np.testing.assert_array_equal(memory.count, [0, 5])


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_rules_without_a_memory_keep_none(rule):
    assert rule.start(CHAIN) == ()
    assert rule.update((), CHAIN, jnp.array([1]), jnp.array([1.0])) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossAwareTimesteps(length=0), "length is 0; expected a whole number, at least 1"),
        (lambda: LossAwareTimesteps(uniform_share=0.0), "uniform_share is 0.0; expected more than 0, at most 1"),
        (lambda: LossAwareTimesteps(uniform_share=1.5), "uniform_share is 1.5; expected more than 0, at most 1"),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
