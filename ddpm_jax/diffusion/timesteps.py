"""How the timesteps of a training batch are drawn, and the weight of each, which keeps the mean of the loss.

    t ~ p(t),   weight = 1 / (T p(t)),   E_p[ weight loss_t ] = (1 / T) sum_t loss_t   whatever p

A rule may remember losses: its memory is a tree of arrays in the training state, so it is saved, restored and the same
on any number of devices.
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.arrays import Key, PerExample
from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["LossAwareTimesteps", "LossHistory", "StratifiedTimesteps", "TimestepRule", "UniformTimesteps", "strata"]


@dataclass(frozen=True)
class TimestepRule:
    """A rule for drawing t in 1..T; subclasses give `draw`, and the other two if they keep a memory."""

    def start(self, num_steps: int) -> Any:
        """The memory before the first step, for a chain of num_steps = T steps."""
        return ()

    def draw(self, key: Key, memory: Any, num_steps: int, batch: int) -> tuple[Int[Array, " batch"], PerExample]:
        """Draw the timesteps of a batch.

        Args:
            key: the key.
            memory: what `start` or `update` returned.
            num_steps: T.
            batch: the number of examples.

        Returns:
            (t, int32 [batch], weight, float32 [batch]).
        """
        raise NotImplementedError

    def update(self, memory: Any, t: Int[Array, " batch"], losses: PerExample) -> Any:
        """The memory after a step.

        Args:
            memory: the memory before it.
            t: the timesteps of the batch, int32 [batch].
            losses: the losses of the examples, float32 [batch], not weighted.
        """
        return memory


@dataclass(frozen=True)
class UniformTimesteps(TimestepRule):
    """Each timestep equally likely, each example's independent (Ho et al. 2020, algorithm 1)."""

    def draw(self, key: Key, memory: Any, num_steps: int, batch: int) -> tuple[Int[Array, " batch"], PerExample]:
        return jax.random.randint(key, (batch,), 1, num_steps + 1), jnp.ones(batch)


@dataclass(frozen=True)
class StratifiedTimesteps(TimestepRule):
    """Each timestep equally likely, those of a batch evenly spread: t/T = (u + i / batch) mod 1, one u for all.

    A loss of less variance at no cost (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """

    def draw(self, key: Key, memory: Any, num_steps: int, batch: int) -> tuple[Int[Array, " batch"], PerExample]:
        place = (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
        t = 1 + jnp.floor(num_steps * place).astype(jnp.int32)
        return jnp.minimum(t, num_steps), jnp.ones(batch)


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
    """

    length: int = 10
    """How many losses of each timestep are remembered, and needed before any counts."""
    uniform_share: float = 0.001
    """The share of p(t) that stays uniform, so that no timestep is forgotten."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("length", self.length, 1)
        require("uniform_share", self.uniform_share, 0 < self.uniform_share <= 1, "more than 0, at most 1")

    def start(self, num_steps: int) -> LossHistory:
        return LossHistory(jnp.zeros((num_steps, self.length)), jnp.zeros(num_steps, jnp.int32))

    def probabilities(self, memory: LossHistory) -> Float[Array, " T"]:
        """p(t) for t = 1..T."""
        even = jnp.full(len(memory.count), 1 / len(memory.count))
        size = jnp.sqrt(jnp.mean(memory.losses**2, axis=1))
        known = jnp.all(memory.count >= self.length) & (size.sum() > 0)
        aware = size / jnp.where(known, size.sum(), 1.0)
        return jnp.where(known, (1 - self.uniform_share) * aware + self.uniform_share * even, even)

    def draw(
        self, key: Key, memory: LossHistory, num_steps: int, batch: int
    ) -> tuple[Int[Array, " batch"], PerExample]:
        p = self.probabilities(memory)
        edges = jnp.cumsum(p)
        index = jnp.searchsorted(edges, edges[-1] * jax.random.uniform(key, (batch,)), side="right")
        index = jnp.minimum(index, num_steps - 1)
        return index + 1, 1 / (num_steps * p[index])

    def update(self, memory: LossHistory, t: Int[Array, " batch"], losses: PerExample) -> LossHistory:
        """The losses written over the oldest ones, in the order of the batch."""
        row, place = self._places(memory.count, t - 1)
        return LossHistory(
            memory.losses.at[row, place].set(losses, mode="drop"),
            memory.count.at[t - 1].add(1),
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
