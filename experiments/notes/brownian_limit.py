"""The Brownian limit: with ever more and ever smaller steps, the chain becomes a diffusion driven by Brownian motion.

    python experiments/notes/brownian_limit.py

The derivation is beside this file, in brownian_limit.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from note import Claim, Findings, Note

from ddpm_jax.diffusion import forward, schedule

START, END = 0.1, 20.0  # beta(u) at u = 0 and 1: the published betas times 1000 (Song et al. 2021, 2011.13456)
LENGTHS = [2**k for k in range(6, 13)]
ORDER_FROM = 512  # the slopes are those from here on
PLACES = np.linspace(0, 1, 33)  # the u at which laws are compared
X = 1.0
SHOWN = (32, 128, 4096)


def chain_of(num_steps: int) -> schedule.Linear:
    """The chain whose betas are beta(u) / T."""
    return schedule.Linear(num_steps, beta_start=START / num_steps, beta_end=END / num_steps)


def log_alpha_bar(spec: schedule.Schedule) -> np.ndarray:
    """log alpha_bar_0, ..., log alpha_bar_T in float64: the errors here are too small for float32."""
    return np.concatenate([[0.0], np.cumsum(np.log1p(-spec.betas()))])


def integral(u: Any) -> Any:
    """B(u), the integral of beta from 0 to u."""
    return START * u + (END - START) * u**2 / 2


def integral_of_square(u: Any) -> Any:
    """The integral of beta^2 from 0 to u."""
    return ((START + (END - START) * u) ** 3 - START**3) / (3 * (END - START))


def covariances(log_a: np.ndarray) -> np.ndarray:
    """Cov(z_s, z_t | x) = signal_t / signal_s noise_var_s for s <= t, for all pairs of the times of `log_a`."""
    later, sooner = np.minimum.outer(log_a, log_a), np.maximum.outer(log_a, log_a)
    return np.exp((later - sooner) / 2) * -np.expm1(sooner)


def law_error(num_steps: int) -> tuple[float, float]:
    """(Wasserstein-2 distance of q(z_t | x), distance of covariances), chain to limit, the largest over PLACES."""
    chain, limit = log_alpha_bar(chain_of(num_steps))[:: num_steps // 32], -integral(PLACES)
    mean = X * (np.exp(chain / 2) - np.exp(limit / 2))
    std = np.sqrt(-np.expm1(chain)) - np.sqrt(-np.expm1(limit))
    return np.hypot(mean, std).max(), np.abs(covariances(chain) - covariances(limit)).max()


def weights(num_steps: int) -> np.ndarray:
    """z_T = signal_T x + sum_t weights_t eps_t."""
    log_a = log_alpha_bar(chain_of(num_steps))
    return np.sqrt(chain_of(num_steps).betas()) * np.exp((log_a[-1] - log_a[1:]) / 2)


def path_error(num_steps: int) -> float:
    """Root mean square distance, at u = 1, of the chains of T and of 2 T steps that share one Brownian motion."""
    signal, fine_signal = (np.exp(log_alpha_bar(chain_of(n))[-1] / 2) for n in (num_steps, 2 * num_steps))
    noise = np.repeat(weights(num_steps), 2) / np.sqrt(2) - weights(2 * num_steps)
    return np.sqrt((signal - fine_signal) ** 2 * X**2 + np.sum(noise**2))


def coin_distance(w: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance to the normal of sum_t w_t coin_t, coins being +1 or -1.

    The characteristic function is a product of cosines, and F(y) - 1/2 = 1/pi int_0^inf sin(f y) phi(f) / f df
    (Gil-Pelaez 1951, doi 10.1093/biomet/38.3-4.481).
    """
    step = 0.02
    f = np.arange(step / 2, 40, step)
    phi = np.ones_like(f)
    for part in w / np.linalg.norm(w):
        phi *= np.cos(part * f)
    difference = np.sin(np.outer(np.linspace(0, 4, 401), f)) @ ((phi - np.exp(-(f**2) / 2)) / f) * step / np.pi
    return np.abs(difference).max()


def coin_chains(num_steps: int, count: int) -> np.ndarray:
    """(z_T - mean) / std of chains whose noises are coins."""
    s, x = chain_of(num_steps).build(), jnp.full(count, X)
    coins = jax.random.rademacher(jax.random.key(1), (num_steps, count), jnp.float32)
    q = forward.marginal(s, x, num_steps)
    return np.asarray((forward.walk(s, x, coins)[-1] - q.mean) / q.std)


def slope(errors: np.ndarray) -> float:
    """d log(error) / d log(T), fitted from ORDER_FROM on."""
    late = LENGTHS.index(ORDER_FROM)
    return np.polyfit(np.log(LENGTHS[late:]), np.log(errors[late:]), 1)[0]


def variation_moments(num_steps: int) -> tuple[float, float]:
    """Mean and standard deviation of sum_t (z_t - z_{t-1})^2: of a quadratic form of normals, exactly."""
    log_a = log_alpha_bar(chain_of(num_steps))
    m, c = X * np.diff(np.exp(log_a / 2)), np.diff(np.diff(covariances(log_a), axis=0), axis=1)
    return np.trace(c) + m @ m, np.sqrt(2 * np.sum(c**2) + 4 * m @ c @ m)


def shared_paths(finest: int) -> dict[int, np.ndarray]:
    """Chains of the lengths SHOWN, driven by one Brownian motion: its increments over longer and longer steps."""
    eps = np.random.default_rng(2).standard_normal((finest, 1))
    paths = {}
    for num_steps in SHOWN:
        m = finest // num_steps
        sums = jnp.asarray(eps.reshape(num_steps, m, 1).sum(1) / np.sqrt(m), jnp.float32)
        walk = forward.walk(chain_of(num_steps).build(), jnp.full(1, X), sums)
        paths[num_steps] = np.concatenate([[X], np.asarray(walk, np.float64)[:, 0]])
    return paths


NEXT_ORDER = "next order: a share β(1) / T, 0.04 at T = 512"


def measure(num_chains: int = 5000, num_steps: int = 1000) -> Findings:
    """Laws, paths, noise and quadratic variation of the chain against the limit's."""
    laws, covariance = np.array([law_error(n) for n in LENGTHS]).T
    path = np.array([path_error(n) for n in LENGTHS])
    coins = np.array([coin_distance(weights(n)) for n in LENGTHS])
    lattice = np.array([scipy.stats.binom.pmf(n // 2, n, 0.5) / 2 for n in LENGTHS])  # half the step at 0, the highest
    claims = [
        *law_claims(laws, covariance, path),
        *coin_claims(coins, lattice, 20 * num_chains),
        *noise_claims(num_chains, num_steps),
    ]
    errors = {
        "paths, $T$ to $2T$ steps": path,
        "law of $z_t$": laws,
        "$z_T$, coins as noise": coins,
        "$W_1$, a sum of coins": lattice,
    }
    return Findings(claims, {"paths": shared_paths(SHOWN[-1]), "errors": errors})


def law_claims(laws: np.ndarray, covariance: np.ndarray, path: np.ndarray) -> list[Claim]:
    """Orders of the errors, the first one's factor, and the library's own schedules, which have no error."""
    u, left = PLACES[1:], np.exp(-integral(PLACES[1:]))  # left: the limit's alpha_bar
    first = ((END - START) * u * (1 - u) - integral_of_square(u)) / 2  # T (log alpha_bar + B) at first order
    leading = np.max(np.abs(first) / 2 * np.sqrt(left * X**2 + left**2 / (1 - left)))
    published = log_alpha_bar(schedule.Linear())
    matched = [np.abs(log_alpha_bar(schedule.Linear(n)) - published[:: 1000 // n]).max() for n in (10, 25, 100, 500)]
    return [
        Claim(
            "law of z_t | x, covariances, paths on one Brownian motion: order in T, furthest from −1",
            max((slope(errors) for errors in (laws, covariance, path)), key=lambda order: abs(order + 1)),
            -1,
            0.05,
            NEXT_ORDER,
        ),
        Claim(
            f"law of z_t | x: Wasserstein-2 distance times T, at T = {LENGTHS[-1]:,}",
            laws[-1] * LENGTHS[-1],
            leading,
            leading * END / LENGTHS[-1],
            "first order of log ᾱ_t, in closed form; a share β(1) / T",
        ),
        Claim(
            "own schedules of 10 to 1,000 steps: log ᾱ at the same u", max(matched), 0, 1e-12, "float64; the same curve"
        ),
    ]


def coin_claims(coins: np.ndarray, lattice: np.ndarray, count: int) -> list[Claim]:
    """Chains whose noises are coins: how far from normal, and of which order in T."""
    drawn = scipy.stats.kstest(coin_chains(32, count), "norm").statistic
    because = "characteristic function; 2.2 / √chains"
    return [
        Claim("coins for noise, distance of z_T to the normal: order in T", slope(coins), -1, 0.05, NEXT_ORDER),
        Claim(
            "coins, the same of chains of 32 steps", drawn, coin_distance(weights(32)), 2.2 / np.sqrt(count), because
        ),
        Claim(
            "coins, distance of W_1 to the normal: order in T", slope(lattice), -0.5, 1e-3, "√(1 / 2πT), error 1 / (4T)"
        ),
    ]


def noise_claims(num_chains: int, num_steps: int) -> list[Claim]:
    """The noise that paths are made of, read off them, and their quadratic variation."""
    s = chain_of(num_steps).build()
    z = jax.jit(forward.chain)(jax.random.key(0), s, jnp.full(num_chains, X))  # [T, chains]
    before = jnp.concatenate([jnp.full((1, num_chains), X), z[:-1]])
    q = jax.jit(forward.transition)(s, before, jnp.arange(1, num_steps + 1))
    eps = np.asarray((z - q.mean) / q.std)
    lagged = [abs(np.vdot(eps[lag:], eps[:-lag])) / np.sqrt(eps[lag:].size) for lag in range(1, 11)]
    some = eps.ravel()[:: -(-eps.size // 10**6)]
    distance, far = scipy.stats.kstest(some, "norm").statistic, 2.2 / np.sqrt(some.size)
    variation = np.sum(np.diff(np.asarray(z, np.float64), axis=0, prepend=X) ** 2, axis=0)
    mean, std = variation_moments(num_steps)
    moments = abs(variation.mean() / mean - 1) * mean / std, abs(variation.var() / std**2 - 1) / np.sqrt(2)
    limit = np.sqrt(2 * integral_of_square(1.0))
    return [
        Claim(
            "noise read off paths: correlation at 10 lags, largest, in standard errors",
            max(lagged),
            0,
            4,
            "independent: no correlation; 1 in 1,600",
        ),
        Claim("the same: Kolmogorov-Smirnov distance to N(0, 1)", distance, 0, far, "2.2 / √number: 1 in 8,000"),
        Claim(
            "quadratic variation: mean and variance, larger error in standard errors",
            max(moments) * np.sqrt(num_chains),
            0,
            4,
            "quadratic form of normals: tr C + m², 2 tr C² + 4 mCm",
        ),
        Claim(
            "its standard deviation times √T, at T = 1,000",
            variation_moments(1000)[1] * np.sqrt(1000),
            limit,
            limit * END / 1000,
            "√(2 ∫β²); a share β(1) / T",
        ),
    ]


def draw(figure: Any, paths: dict, errors: dict) -> None:
    """One Brownian motion in chains of three lengths; errors against T; quadratic variation."""
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes = left.subplots(len(paths), 1, sharex=True, sharey=True)
    fine = np.linspace(0, 1, 500)
    mean, std = X * np.exp(-integral(fine) / 2), np.sqrt(-np.expm1(-integral(fine)))
    for i, (num_steps, z) in enumerate(paths.items()):
        axes[i].fill_between(fine, mean - 2 * std, mean + 2 * std, color="#e4e4e4", linewidth=0)
        u = np.arange(num_steps + 1) / num_steps
        style = {"marker": "o", "markersize": 3} if num_steps < 100 else {}
        axes[i].plot(u, z, color=f"C{i}", linewidth=0.9, **style)
        axes[i].set(ylabel="$z_t$", title=f"$T$ = {num_steps:,}", xlim=(0, 1))
        axes[i].set_yticks([-2, 0, 2])
    axes[-1].set_xlabel("$u = t/T$    (grey: mean ± 2 std of the limit)")
    above, below = right.subplots(2, 1)
    for color, marker, (name, values) in zip(("C6", "C3", "C4", "C5"), "osD^", errors.items(), strict=True):
        label = f"{name}: {slope(values):.2f}"
        above.loglog(LENGTHS, values, marker=marker, markersize=3.5, linewidth=1, color=color, label=label)
    above.set(title="Distance to the limit: slope", xlabel="$T$", ylabel="distance", ylim=(5e-5, 50))
    above.set(yticks=[1e-4, 1e-3, 1e-2, 1e-1])
    above.legend(fontsize=8, loc="upper right", handlelength=1, labelspacing=0.2, borderaxespad=0)
    for i, ((num_steps, z), dashes) in enumerate(zip(paths.items(), (":", "-.", "-"), strict=True)):
        rise = np.concatenate([[0], np.cumsum(np.diff(z) ** 2)])
        below.plot(np.arange(num_steps + 1) / num_steps, rise, dashes, color=f"C{i}", label=f"$T$ = {num_steps:,}")
    below.plot(fine, integral(fine), color="#222222", linestyle="--", linewidth=1, label=r"limit, $\int\beta$")
    below.set(title="Quadratic variation", xlabel="$u$", ylabel=r"sum of $(z_t - z_{t-1})^2$", xlim=(0, 1))
    below.legend(handlelength=1.5)


NOTE = Note(
    __file__,
    "The Brownian limit",
    "Left: one Brownian motion drives chains of more and more steps; grey, mean and two standard deviations of the "
    "limit. Right: the distance to the limit (for paths: of T to 2T steps) and its order in T; the sum of squared "
    "increments, which for long chains is no longer random.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
