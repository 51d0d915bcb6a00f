"""Noise schedule and marginal: T small steps of noise are, together, one step that can be taken at once.

    python experiments/notes/marginal.py

The derivation is beside this file, in marginal.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from note import DASHES, Claim, Findings, Note, photograph, show

from ddpm_jax.diffusion import forward, schedule
from ddpm_jax.diffusion.schedule import Chain

SCHEDULES = {
    "linear": schedule.Linear(),
    "scaled linear": schedule.ScaledLinear(),
    "cosine": schedule.Cosine(),
    "sigmoid": schedule.Sigmoid(),
}
X = 0.7
SHOWN = (0, 50, 100, 200, 300, 500, 1000)


def composed(s: Chain) -> tuple[float, float]:
    """The induction's two lines, run in float64: largest errors of the factor on x, and of the variance."""
    factor, var, errors = 1.0, 0.0, np.zeros((s.num_steps, 2))
    tables = (np.asarray(table, np.float64) for table in (s.beta, s.signals, s.noise_var))
    for t, (beta, signal, noise_var) in enumerate(list(zip(*tables, strict=True))[1:]):
        factor, var = np.sqrt(1 - beta) * factor, (1 - beta) * var + beta
        errors[t] = abs(factor - signal), abs(var - noise_var)
    return tuple(errors.max(0))


def measure(num_chains: int = 20_000, num_steps: int = 1000) -> Findings:
    """Chains from one x against q(z_t | x), at every t."""
    s = schedule.Linear(num_steps).build()
    z = np.asarray(forward.chain(jax.random.key(0), s, jnp.full(num_chains, X)), np.float64)  # [T, chains]
    q = forward.marginal(s, jnp.full(num_steps, X), jnp.arange(1, num_steps + 1))  # of z_1, ..., z_T
    mean, std = np.asarray(q.mean, np.float64), np.asarray(q.std, np.float64)
    mean_error = np.abs(z.mean(1) - mean) / (std / np.sqrt(num_chains))
    var_error = np.abs(z.var(1) / std**2 - 1) / np.sqrt(2 / num_chains)
    looked_at = np.unique(np.linspace(1, num_steps, 40).astype(int)) - 1
    distance = np.array([scipy.stats.kstest(z[i], "norm", args=(mean[i], std[i])).statistic for i in looked_at])

    tables = {name: spec.build() for name, spec in SCHEDULES.items()}
    factor, var = np.max([composed(table) for table in tables.values()], axis=0)
    snr = {name: s.snr(np.arange(1, s.num_steps + 1)) for name, s in tables.items()}
    rises = sum(int(np.sum(np.diff(values) >= 0)) for values in snr.values())
    claims = [
        Claim("mean of z_t: largest error, in standard errors", mean_error.max(), 0, 5, "most of 1,000 normals: 3.2"),
        Claim("variance of z_t: the same", var_error.max(), 0, 5, "most of 1,000 normals: 3.2"),
        Claim(
            "Kolmogorov-Smirnov distance to N(signal x, noise²), largest",
            distance.max(),
            0,
            2.2 / np.sqrt(num_chains),
            "2.2 / √chains: 1 in 8,000 for one t",
        ),
        Claim("factor on x, step by step, all schedules", factor, 0, 1e-6, "√ᾱ_t; tables are float32"),
        Claim("variance, step by step, all schedules", var, 0, 1e-6, "1 − ᾱ_t; tables are float32"),
        Claim("steps at which the signal-to-noise ratio rises", rises, 0, 0, "ᾱ_t falls, so ᾱ_t / (1 − ᾱ_t) does"),
    ]
    picture = photograph(128)[None]
    eps = jax.random.normal(jax.random.key(1), picture.shape)
    images = [forward.diffuse(tables["linear"], picture, t, eps)[0] for t in SHOWN]
    shown = {"images": images, "z": z, "mean": mean, "std": std, "snr": snr}
    return Findings(claims, shown)


def draw(figure: Any, images: list, z: np.ndarray, mean: np.ndarray, std: np.ndarray, snr: dict) -> None:
    """A photograph drowning in noise; chains against the closed form; the signal-to-noise ratios."""
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.4))
    above.suptitle("$z_t$ of a photograph, linear schedule", fontsize=10, fontweight="bold")
    for axes, image, t in zip(above.subplots(1, len(images)), images, SHOWN, strict=True):
        show(axes, image)
        axes.set_title(f"$t$ = {t}", fontweight="normal", fontsize=9.5)
    left, right = below.subplots(1, 2)
    line = np.linspace(-4, 4, 300)
    for share, dashes in zip((0.04, 0.2, 0.4, 1.0), DASHES, strict=True):
        i = int(share * len(z)) - 1
        left.hist(z[i], bins=np.linspace(-4, 4, 100), density=True, alpha=0.35)
        color = left.patches[-1].get_facecolor()[:3]
        left.plot(line, scipy.stats.norm.pdf(line, mean[i], std[i]), dashes, color=color, label=f"$t$ = {i + 1}")
    left.set(
        title=f"{z.shape[1]:,} chains from $x$ = {X}",
        xlabel="$z_t$",
        ylabel="density, line: $q(z_t | x)$",
        ylim=(0, 2.4),
    )
    left.legend()
    for (name, values), dashes in zip(snr.items(), DASHES, strict=True):
        right.semilogy(np.arange(1, len(values) + 1), values, dashes, label=name)
    right.set(
        title="Signal-to-noise ratio",
        xlabel="$t$",
        ylabel=r"$\bar{\alpha}_t\ /\ (1 - \bar{\alpha}_t)$",
        ylim=(1e-6, 1e5),
    )
    right.legend()


NOTE = Note(
    __file__,
    "Noise schedule and marginal",
    "A photograph at growing t; histograms of chains run step by step, with the closed form drawn over them; how fast "
    "each schedule lets go of the signal.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
