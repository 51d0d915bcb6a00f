"""Perspectives: one trained network is a denoiser, a score, a velocity, a predictor of noise and a flow, all at once.

    python experiments/notes/perspectives.py

The derivation is beside this file, in perspectives.md.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from note import Claim, Findings, Note

from ddpm_jax.diffusion import forward, objective, targets
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.likelihood import log_likelihood, velocity
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Chain, Cosine
from ddpm_jax.diffusion.targets import Eps, Mean, Score, V, X
from ddpm_jax.diffusion.variance import FixedSmall
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.sampling import Ddim, sample
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

DATA = Mixture.of([0.3, 0.5, 0.2], [[-1.3], [0.1], [1.2]], [0.2, 0.3, 0.15])
NET = Mlp(width=64, depth=2)
READINGS = {"x": X(), "ε": Eps(), "v": V(), "score": Score(), "mean of z_{t−1}": Mean()}
SHOWN = 200  # the t of the curves


def around(p: Mixture, count: int = 401, stds: float = 5.0) -> tuple[jax.Array, jax.Array]:
    """Points [count, 1], and weights whose sum with any function of them is its mean under p."""
    near = p.moments()
    z = near.mean + near.std * stds * jnp.linspace(-1, 1, count)[:, None]
    return z, jax.nn.softmax(p.log_prob(z))


def read(s: Chain, predict: Any, target: Any, z: jax.Array, t: Any) -> dict[str, Any]:
    """The network's answer at z in all five languages, and dz/dt of the flow."""
    said = {name: targets.convert(s, predict(z, t), z, t, target, other) for name, other in READINGS.items()}
    decoder = Denoiser(predict, s, target, FixedSmall())
    return {**said, "flow": velocity(decoder, z, jnp.asarray(t, jnp.float32))}


@jax.jit
def exact_readings(s: Chain, t: jax.Array) -> dict[str, jax.Array]:
    """How far apart two ways to the same number are, for the exact denoiser: the largest over z."""
    p = DATA.diffused(s, t)
    z, _ = around(p)
    said, score = read(s, DATA.denoiser(s).predict, X(), z, t), p.score(z)
    there = {name: (target, said[name]) for name, target in READINGS.items()}
    back = [
        targets.convert(s, targets.convert(s, value, z, t, one, other), z, t, other, X())
        for one, value in there.values()
        for other in READINGS.values()
    ]
    rate, _ = s.rates(t)
    flow = rate / s.signal(t) * (z + score)
    return {
        "back": jnp.max(jnp.abs(jnp.stack(back) - said["x"])),
        "tweedie": jnp.max(jnp.abs((z + s.noise_var[t] * score) / s.signal(t) - said["x"])),
        "score": jnp.max(jnp.abs(said["score"] - score)) / jnp.max(jnp.abs(score)),
        "flow": jnp.max(jnp.abs(said["flow"] - flow)) / jnp.max(jnp.abs(flow)),
    }


@jax.jit
def score_error(s: Chain, predict: Any, t: jax.Array) -> jax.Array:
    """E|learned score − exact score|² / E|exact score|² under p(z_t)."""
    p = DATA.diffused(s, t)
    z, weight = around(p)
    score = p.score(z)
    error = targets.convert(s, predict(z, t), z, t, V(), Score()) - score
    return weight @ error[:, 0] ** 2 / (weight @ score[:, 0] ** 2)


@jax.jit
def excess(s: Chain, predict: Any, x: jax.Array, draws: objective.Draws) -> tuple[jax.Array, jax.Array]:
    """(loss of the network − loss of the exact one, squared distance of the two), for each example."""
    z, best = forward.diffuse(s, x, draws.t, draws.eps), DATA.denoiser(s).predict

    def exact(z: Any, t: Any) -> Any:
        return targets.convert(s, best(z, t), z, t, X(), V())

    losses = [objective.SquaredError()(Denoiser(network, s, V()), x, draws) for network in (predict, exact)]
    return losses[0] - losses[1], ((predict(z, draws.t) - exact(z, draws.t)) ** 2)[:, 0]


def train(s: Chain, num_steps: int) -> Any:
    """A network that predicts v."""
    recipe = Recipe(NET, s, V(), update=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)))
    state, _ = fit(jax.random.key(0), recipe, lambda key: DATA.sample(key, 512), num_steps)
    return NET.bind(state.params)


def measure(
    train_steps: int = 2000, count: int = 1000, score_limit: float = 0.02, nats_limit: float = 0.05
) -> Findings:
    """One trained network, and the exact one, read in every way; the limits are what such a training should reach."""
    s = Cosine().build()
    every = [exact_readings(s, jnp.int32(t)) for t in (50, 200, 400, 600, 800, 950)]
    off = {name: max(float(one[name]) for one in every) for name in every[0]}
    divided = "equal; float32 over b_950 = 0.003", "equal; float32 over √ᾱ_950"
    claims = [
        Claim("exact denoiser read as any of five, and back: x", off["back"], 0, 1e-3, divided[0]),
        Claim("Tweedie: (z_t + (1 − ᾱ_t) score) / √ᾱ_t − E[x | z_t]", off["tweedie"], 0, 1e-4, divided[1]),
        Claim("the denoiser as a score, relative to the largest", off["score"], 0, 1e-3, "∇ log p(z_t); float32"),
        Claim("the denoiser as a flow, likewise", off["flow"], 0, 1e-3, "(log √ᾱ)' (z_t + score); slopes of tables"),
    ]
    predict = train(s, train_steps)
    claims += [*learned_claims(s, predict, 400 * count, score_limit), *flow_claims(s, predict, count, nats_limit)]
    return Findings(claims, shown(s, predict))


def learned_claims(s: Chain, predict: Any, count: int, limit: float) -> list[Claim]:
    """The trained network: its loss, its score."""
    x = DATA.sample(jax.random.key(1), count)
    both = excess(s, predict, x, objective.draw(jax.random.key(2), s, x.shape))
    gap, distance = (np.asarray(part, np.float64) for part in both)
    tolerance = 4 * (gap - distance).std() / np.sqrt(count)
    worst = max(float(score_error(s, predict, jnp.int32(t))) for t in (100, 200, 400, 600, 800))
    return [
        Claim("loss − loss of the exact one", gap.mean(), distance.mean(), tolerance, "squared distance; 4 s.e."),
        Claim("learned score: E|error|² / E|score|², worst of 5 t", worst, limit, 0, "0 if exact; a set limit", "<"),
    ]


def flow_claims(s: Chain, predict: Any, count: int, limit: float) -> list[Claim]:
    """The trained network as a flow: followed, followed back, and its likelihood."""
    z = jnp.linspace(-2, 2, 41)[:, None]
    model = Denoiser(predict, s, target=V())
    follow = partial(sample, jax.random.key(0), model, shape=z.shape, start=(z, s.num_steps))
    ends = [follow(sampler=Ddim(k)) for k in (125, 250, 500)]
    first, second = (float(jnp.abs(fine - coarse).mean()) for coarse, fine in itertools.pairwise(ends))
    x = jnp.concatenate([ends[-1], DATA.sample(jax.random.key(4), count)])
    found = log_likelihood(jax.random.key(3), model, x, trace="exact", bins=None, tolerance=1e-4)
    off = float(np.abs(found.latent[: len(z)] - z).max())
    nats = np.asarray(DATA.log_prob(x) - found.log_prob, np.float64)[len(z) :].mean()
    order = np.log2(first / second)
    return [
        Claim("DDIM along its flow: order in the number of steps", order, 1, 0.15, "first-order solver"),
        Claim("flow backwards from DDIM's x: error of z_T", off, 0, 0.05, "DDIM's own error in 500 steps"),
        Claim("the flow's −log p(x) − the truth's, nats", nats, limit, 0, "0 if exact; a set limit", "<"),
    ]


def shown(s: Chain, predict: Any) -> dict[str, Any]:
    """Curves at one t, and the score's error at many."""
    p = DATA.diffused(s, SHOWN)
    z, _ = around(p, 161, 3.5)
    times = np.unique(np.geomspace(5, s.num_steps - 1, 40).astype(int))
    return {
        "z": z[:, 0],
        "density": jnp.exp(p.log_prob(z)),
        "learned": {name: value[:, 0] for name, value in read(s, predict, V(), z, SHOWN).items()},
        "exact": {name: value[:, 0] for name, value in read(s, DATA.denoiser(s).predict, X(), z, SHOWN).items()},
        "errors": (times, [float(score_error(s, predict, jnp.int32(t))) for t in times]),
    }


def draw(figure: Any, z: Any, density: Any, learned: dict, exact: dict, errors: tuple) -> None:
    """Five readings and the density of one t; the score's error."""
    axes = figure.subplots(2, 3)
    names = {
        "x": ("Denoiser", "$E[x | z_t]$"),
        "ε": ("Noise", "$E[\\epsilon | z_t]$"),
        "v": ("Velocity", "$E[v | z_t]$"),
        "score": ("Score", "$\\nabla \\log p(z_t)$"),
        "flow": ("Flow", "$dz/dt$"),
    }
    for i, (ax, (name, (title, quantity))) in enumerate(zip(axes.flat, names.items(), strict=False)):
        behind = ax.twinx()
        behind.fill_between(z, density, color="#e9e9e9", linewidth=0)
        behind.set(yticks=[], ylim=(0, 2 * float(np.max(density))))
        behind.spines[["right", "left", "bottom"]].set_visible(False)
        behind.grid(visible=False)
        ax.set_zorder(behind.get_zorder() + 1)
        ax.patch.set_visible(False)
        ax.plot(z, learned[name], color=f"C{i}", linewidth=2.5, label="one network")
        ax.plot(z, exact[name], color="#222222", linestyle="--", linewidth=1, label="exact")
        ax.set(title=title, xlabel="$z_t$", ylabel=quantity)
        ax.yaxis.labelpad = 0
        if i == 0:
            handles = [*ax.get_legend_handles_labels()[0], behind.collections[0]]
            names_of = ["one network, a colour for each reading", "exact", f"$p(z_t)$ at $t$ = {SHOWN}"]
            figure.legend(handles, names_of, loc="outside lower center", ncols=3)
    last = axes.flat[5]
    last.loglog(*errors, color="C5")
    last.set(title="Error of the score", xlabel="$t$", ylabel="relative, squared")


NOTE = Note(
    __file__,
    "Perspectives",
    f"One network, trained to predict v, read in five ways at t = {SHOWN} over the density of z_t (grey). Each reading "
    "is the same knowledge in other words. Last: how far its score is from the exact one at each t.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
