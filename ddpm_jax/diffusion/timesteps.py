"""How the times of a training batch are drawn, and the weight of each.

    chain         t ~ p(t) on 1..T,   weight = 1 / (T p(t)),                 E_p[weight loss_t] = (1 / T) sum_t loss_t
    continuous    t ~ p(t),           weight = 1 / ((last - first) p(t)),    E_p[weight loss_t] = the mean over t

With this weight the mean of the loss stays that of uniform times, whatever p: p only changes its variance.
`LogitNormal` and `LogNormalSigma` take the weight 1 instead, unless asked to keep the mean: as in the papers, the
density is then a part of the loss's weighting.

A rule may remember losses: its memory is a tree of arrays in the training state, so it is saved, restored and the same
on any number of devices.

Sources: Ho et al. 2020; Kingma et al. 2021 (arXiv 2107.00630); Nichol & Dhariwal 2021; Karras et al. 2022 (2206.00364);
Esser et al. 2024 (2403.03206).
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.arrays import Key, PerExample, Time
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["LogNormalSigma", "LogitNormal", "LossAwareTimesteps", "LossHistory", "StratifiedTimesteps", "TimestepRule"]
__all__ += ["UniformTimesteps"]

# The parts of a continuous process whose losses LossAwareTimesteps remembers.
BINS = 100


@dataclass(frozen=True)
class TimestepRule:
    """A rule for drawing t; subclasses give `draw`, and the other two if they keep a memory."""

    def start(self, process: Process) -> Any:
        """The memory before the first step."""
        return ()

    def draw(self, key: Key, memory: Any, process: Process, batch: int) -> tuple[Time, PerExample]:
        """Draw the times of a batch.

        Args:
            key: the key.
            memory: what `start` or `update` returned.
            process: the forward process.
            batch: the number of examples.

        Returns:
            (t, [batch]: int32 in 1..T for a chain, float32 for a continuous process; weight, float32 [batch]).
        """
        raise NotImplementedError

    def update(self, memory: Any, process: Process, t: Time, losses: PerExample) -> Any:
        """The memory after a step.

        Args:
            memory: the memory before it.
            process: the forward process.
            t: the times of the batch, [batch].
            losses: the losses of the examples, float32 [batch], not weighted.
        """
        return memory

    def check(self, process: Process) -> None:
        """Raise ValueError unless the rule fits the process."""


@dataclass(frozen=True)
class UniformTimesteps(TimestepRule):
    """Each time equally likely, each example's independent (Ho et al. 2020, algorithm 1).  Keeps the mean."""

    def draw(self, key: Key, memory: Any, process: Process, batch: int) -> tuple[Time, PerExample]:
        if process.is_chain:
            return jax.random.randint(key, (batch,), 1, process.last + 1), jnp.ones(batch)
        return process.at_share(jax.random.uniform(key, (batch,))), jnp.ones(batch)


@dataclass(frozen=True)
class StratifiedTimesteps(TimestepRule):
    """Each time equally likely, those of a batch evenly spread: share (u + i / batch) mod 1, one u for all.

    A loss of less variance at no cost (Kingma et al. 2021, appendix I.1).  Keeps the mean.
    """

    def draw(self, key: Key, memory: Any, process: Process, batch: int) -> tuple[Time, PerExample]:
        return process.at_share((jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0), jnp.ones(batch)


@dataclass(frozen=True)
class Density(TimestepRule):
    """A density of real times, with the weight 1 or that which keeps the mean."""

    mean: float = 0.0
    """The mean of the number that is normal."""
    std: float = 1.0
    """Its standard deviation."""
    keep_mean: bool = False
    """Whether the loss is reweighted to the mean over t; if not, the density is a part of the weighting."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("std", self.std, self.std > 0, "more than 0")

    def check(self, process: Process) -> None:
        expected = "UniformTimesteps(), StratifiedTimesteps() or LossAwareTimesteps() for a chain"
        require("timesteps", self, not process.is_chain, expected)


@dataclass(frozen=True)
class LogitNormal(Density):
    """logit of (t - first) / (last - first) normal, for rectified flow (Esser et al. 2024, section 3.1)."""

    def draw(self, key: Key, memory: Any, process: Process, batch: int) -> tuple[Time, PerExample]:
        y = self.mean + self.std * jax.random.normal(key, (batch,))
        share = jax.nn.sigmoid(y)
        density = norm.pdf(y, self.mean, self.std) / (share * (1 - share))
        return process.at_share(share), 1 / density if self.keep_mean else jnp.ones(batch)


@dataclass(frozen=True)
class LogNormalSigma(Density):
    """log sigma normal, sigma = noise / signal, cut at the ends of the process (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    """The mean of log sigma; EDM's for images in [-1, 1]."""
    std: float = 1.2
    """The standard deviation of log sigma."""

    def draw(self, key: Key, memory: Any, process: Process, batch: int) -> tuple[Time, PerExample]:
        ends = process.log_snr(jnp.array([process.first, process.last], jnp.float32))
        low, high = (-ends / 2 - self.mean) / self.std
        y = jax.random.truncated_normal(key, low, high, (batch,))
        t = process.time(-2 * (self.mean + self.std * y))
        density = norm.pdf(y) / (norm.cdf(high) - norm.cdf(low)) / self.std * process.log_snr_rate(t) / 2
        weight = 1 / ((process.last - process.first) * density)
        return t, weight if self.keep_mean else jnp.ones(batch)


@flax.struct.dataclass
class LossHistory:
    """The last losses of each timestep: entry t - 1 is that of t.  Arrays, or their shapes or shardings."""

    losses: Any
    """The losses, float32 [T, length]; 0 for those not seen yet."""
    count: Any
    """How many losses each timestep has had, ever, int32 [T]."""


@dataclass(frozen=True)
class LossAwareTimesteps(TimestepRule):
    """p(t) in proportion to sqrt(E[loss_t^2]), over the last losses of each timestep: for the bound, whose terms differ
    in size by orders of magnitude (Nichol & Dhariwal 2021, equation 18).  Uniform until every timestep has enough.
    Keeps the mean.  For a continuous process, a timestep is one of 100 equal parts of t.
    """

    length: int = 10
    """How many losses of each timestep are remembered, and needed before any counts."""
    uniform_share: float = 0.001
    """The share of p(t) that stays uniform, so that no timestep is forgotten."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("length", self.length, 1)
        require("uniform_share", self.uniform_share, 0 < self.uniform_share <= 1, "more than 0, at most 1")

    def start(self, process: Process) -> LossHistory:
        bins = process.last if process.is_chain else BINS
        return LossHistory(jnp.zeros((bins, self.length)), jnp.zeros(bins, jnp.int32))

    def probabilities(self, memory: LossHistory) -> Float[Array, " T"]:
        """p(t) for t = 1..T."""
        even = jnp.full(len(memory.count), 1 / len(memory.count))
        size = jnp.sqrt(jnp.mean(memory.losses**2, axis=1))
        known = jnp.all(memory.count >= self.length) & (size.sum() > 0)
        aware = size / jnp.where(known, size.sum(), 1.0)
        return jnp.where(known, (1 - self.uniform_share) * aware + self.uniform_share * even, even)

    def draw(self, key: Key, memory: LossHistory, process: Process, batch: int) -> tuple[Time, PerExample]:
        p = self.probabilities(memory)
        edges = jnp.cumsum(p)
        index = jnp.searchsorted(edges, edges[-1] * jax.random.uniform(key, (batch,)), side="right")
        index = jnp.minimum(index, len(p) - 1)
        weight = 1 / (len(p) * p[index])
        if process.is_chain:
            return index + 1, weight
        return process.at_share((index + jax.random.uniform(jax.random.fold_in(key, 1), (batch,))) / BINS), weight

    def update(self, memory: LossHistory, process: Process, t: Time, losses: PerExample) -> LossHistory:
        """The losses written over the oldest ones, in the order of the batch."""
        bins = len(memory.count)
        in_bins = jnp.clip((process.share(t) * bins).astype(jnp.int32), 0, bins - 1)
        index = jnp.asarray(t) - 1 if process.is_chain else in_bins
        row, place = self._places(memory.count, index)
        return LossHistory(
            memory.losses.at[row, place].set(losses, mode="drop"),
            memory.count.at[index].add(1),
        )

    def _places(
        self, count: Int[Array, " T"], index: Int[Array, " batch"]
    ) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
        """(row, place) where each loss of a batch goes, in losses [T, length]; row T for one that is not written.

        No place is given twice, as a scatter may write in any order: of the losses of one t only the last `length` are
        written.
        """
        same = index[:, None] == index[None, :]
        order = jnp.arange(len(index))
        before = jnp.sum(same & (order[None, :] < order[:, None]), axis=1)  # how many of the batch have my t already
        after = jnp.sum(same & (order[None, :] > order[:, None]), axis=1)
        return jnp.where(after < self.length, index, len(count)), (count[index] + before) % self.length


def strata(num_steps: int, count: int) -> Int[np.ndarray, " ends"]:
    """1 = a_0 < a_1 < ... < a_K = T + 1, K = count: part k of 1..T is a_k, ..., a_{k+1} - 1.

    Their lengths grow by one factor, as nearly as whole numbers allow.  If the error of the predicted x is about the
    noise of z_t, term t of the bound is proportional to 1/t, so each part has about the same share of the sum.
    """
    ends = np.rint((num_steps + 1.0) ** (np.arange(count + 1) / count)).astype(int)
    ends = np.maximum.accumulate(ends - np.arange(count + 1)) + np.arange(count + 1)  # each at least one longer
    return np.minimum(ends, num_steps + 1 - np.arange(count, -1, -1))
