"""A chain of T steps, as tables over t = 0..T with index 0 clean, made from its betas.

    alpha_bar_t = prod_{i<=t} (1 - beta_i),   signal_t = sqrt(alpha_bar_t),   noise_t = sqrt(1 - alpha_bar_t)

The tables are computed in float64 and stored in float32.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from ddpm_jax.devices.axes import take
from ddpm_jax.diffusion.arrays import Table, Time, at_time, check_timesteps, is_known
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import short_repr


@flax.struct.dataclass
class Chain(Process):
    """A process of T steps, as tables, each float32 [T+1], index t in 0..T.

    `signal`, `noise` and `log_snr` at a real t are those of the smooth curves through the tables (`arrays.curve`).
    """

    beta: Table
    alpha_bar: Table
    noise_var: Table  # 1 - alpha_bar, computed without cancellation
    signals: Table
    noises: Table
    log_snrs: Float[Array, "2 steps"]  # float32 parts whose sum is log SNR, so that differences keep their digits

    is_chain = True
    first = 1
    clean = 0

    @property
    def last(self) -> int:
        """T."""
        return self.beta.shape[0] - 1

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the chain."""
        return self.last

    def signal(self, t: Time) -> Float[Array, "..."]:
        return at_time(self.signals, t)

    def noise(self, t: Time) -> Float[Array, "..."]:
        return at_time(self.noises, t)

    def log_snr(self, t: Time) -> Float[Array, "..."]:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
            return super().log_snr(t)
        return at_time(self.log_snrs[0], t)

    def label(self, t: Time) -> Any:
        """t - 1: published networks count timesteps from 0."""
        return jnp.asarray(t) - 1

    def share(self, t: Time) -> Float[Array, "..."]:
        return (jnp.asarray(t) - 1) / self.last

    def at_share(self, share: Time) -> Int[Array, "..."]:
        return jnp.minimum(1 + jnp.floor(self.last * jnp.asarray(share)).astype(jnp.int32), self.last)

    def check_time(self, t: Any, name: str = "t", clean: bool = False) -> None:
        check_timesteps(t, 0 if clean else 1, self.last, name)

    def step(self, t: Time, s: Time, u: Time | None = None) -> Step:
        self._check_step(t, s, u)
        xp: Any = jnp
        at: Any = take
        tables: Any = self.signals, self.noises, self.log_snrs
        if is_known(t, s, u, *tables):  # in NumPy, so that nothing is compiled
            xp, at, tables = np, np.take, map(np.asarray, tables)
        signals, noises, (high, low) = tables
        begin, end = xp.asarray(t, np.int32), xp.asarray(s, np.int32)
        start = xp.minimum(2 * begin - end, self.last) if u is None else xp.asarray(u, np.int32)

        def gap(t: Any, s: Any) -> Any:
            return (at(high, s) - at(high, t)) + (at(low, s) - at(low, t))

        # The last step has the variance of the step before it, u -> t, as in the published code.
        before = xp.where(start == begin, xp.float32(1.0), -xp.expm1(-gap(start, begin)))
        ends = at(signals, begin), at(noises, begin), at(signals, end), at(noises, end)
        numbers = (begin, end, *ends, gap(begin, end), at(noises, begin) ** 2 * before, begin)
        return Step(*map(jnp.asarray, numbers))  # pyright: ignore[reportArgumentType]

    def _check_step(self, t: Time, s: Time, u: Time | None) -> None:
        """Raise ValueError unless t is in 1..T, s in 0..t-1 and u in t..T."""
        self.check_time(t)
        self.check_time(s, "s", clean=True)
        if is_known(t, s) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"s is {s} and t is {t}; s must be smaller than t")
        if u is not None:
            self.check_time(u, "u")
            if is_known(t, u) and np.any(np.asarray(u) < np.asarray(t)):
                raise ValueError(f"u is {u} and t is {t}; u must be at least t")


def check_betas(betas: Any) -> Float64[np.ndarray, " T"]:
    """beta_1..beta_T as float64; ValueError unless each is strictly between 0 and 1, the last one at most 1."""
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError):  # lists of different lengths, or no numbers
        raise ValueError(f"betas is {short_repr(betas)}; expected (T,) numbers with T at least 1") from None
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas has shape {betas.shape}; expected (T,) with T at least 1")
    is_last = np.arange(betas.size) == betas.size - 1
    wrong = np.flatnonzero(~((betas > 0) & ((betas < 1) | is_last & (betas == 1))))
    if wrong.size:
        t = int(wrong[0]) + 1
        raise ValueError(
            f"beta at t = {t} is {betas[t - 1]:g}; every beta must lie strictly between 0 and 1, and only the last one "
            "may be 1"
        )
    return betas


def from_betas(betas: Float64[np.ndarray, " T"]) -> Chain:
    """The tables for beta_1..beta_T, computed in float64 and stored in float32.

    1 - alpha_bar is summed from positive terms, 1 - alpha_bar_t = sum_{i<=t} alpha_bar_{i-1} beta_i:
    subtracting a float32 alpha_bar from 1 would leave three digits at t = 1.  A last beta of 1 leaves no signal at T.

    Raises ValueError if a beta is not in (0, 1), or the last one not in (0, 1].
    """
    betas = check_betas(betas)
    beta = np.concatenate([[0.0], betas])
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-beta))
        alpha_bar = np.exp(log_alpha_bar)
        noise_var = np.cumsum(np.concatenate([[0.0], alpha_bar[:-1] * betas]))
        log_snr = log_alpha_bar - np.log(noise_var)
    high = log_snr.astype(np.float32)
    low = np.where(np.isfinite(log_snr), log_snr - np.where(np.isfinite(high), high, 0.0), 0.0)
    tables = (beta, alpha_bar, noise_var, np.sqrt(alpha_bar), np.sqrt(noise_var), np.stack([high, low]))
    return Chain(*(jnp.asarray(table, jnp.float32) for table in tables))
