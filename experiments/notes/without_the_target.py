"""Optimising without seeing the target: a network that is given z_t alone, trained towards q(z_{t-1} | z_t, x).

    python experiments/notes/without_the_target.py

The derivation is beside this file, in without_the_target.md.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax.scipy.stats import norm
from note import Claim, Findings, Note

from ddpm_jax.diffusion import forward, schedule
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.objective import Draws, SquaredError
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.targets import X
from ddpm_jax.diffusion.timesteps import TimestepRule
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.training.average import PowerEma
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

DATA = Mixture.of([0.6, 0.4], [-0.8, 0.8], 0.4)
SCHEDULE = schedule.Linear().build()
T, Z = 300, 0.1  # where one step is looked at
STEPS = {"a small step": 260, "a large step": 60}  # where it ends
LOOKED_AT = (100, T, 600)
NET, BATCH = Mlp(width=32, depth=1), 512


def first(tree: Any) -> Any:
    """The first of a batch."""
    return jax.tree.map(lambda part: part[0], tree)


@dataclass(frozen=True)
class Always(TimestepRule):
    """One t only."""

    t: int

    def draw(self, key: Any, memory: Any, process: Any, batch: int) -> tuple[jax.Array, jax.Array]:
        return jnp.full(batch, self.t), jnp.ones(batch)


@partial(jax.jit, static_argnames="num_draws")
def one_step(earlier: Any, num_draws: int) -> dict[str, Any]:
    """q(z_s | z_t) at one z_t: exact, as an average over x by quadrature, and as one over draws of x."""
    z = jnp.array([Z])
    exact, given_z = (first(DATA.reverse(SCHEDULE, z, T, s)) for s in (earlier, 0))
    near = exact.moments()
    y = near.mean + near.std * jnp.linspace(-4, 4, 300)
    line, draws = jnp.linspace(-4, 4, 4001), given_z.sample(jax.random.key(0), num_draws)
    at_z = forward.marginal(SCHEDULE, line, T).log_prob(jnp.full_like(line, Z))
    weight = jax.nn.softmax(DATA.log_prob(line) + at_z)  # p(x | z_t), by Bayes' rule
    q, drawn = (forward.posterior(SCHEDULE, jnp.full_like(x, Z), x, T, earlier) for x in (line, draws))
    average = norm.pdf(y[:, None], q.mean, q.std) @ weight
    below, cdf = norm.cdf(y[:, None], drawn.mean, drawn.std), exact.cdf(y)  # P(z_s < y | z_t, x) for each x
    off = jnp.abs(below.mean(1) - cdf) / (below.std(1) / jnp.sqrt(num_draws) + 1e-6)
    return {
        "y": y,
        "exact": jnp.exp(exact.log_prob(y)),
        "average": average,
        "given_x": norm.pdf(y[:, None], drawn.mean[:25], drawn.std),
        "standard_errors": jnp.where((cdf > 0.01) & (cdf < 0.99), off, 0).max(),
    }


def kl_to_normal(q: Mixture) -> np.ndarray:
    """KL(q || the normal with its mean and variance) for a batch of mixtures of numbers: quadrature in float64."""
    w, m, s = (np.asarray(part, np.float64)[:, None] for part in (q.weights, q.means, q.stds))
    w = w / w.sum(2, keepdims=True)
    mean = (w * m).sum(2, keepdims=True)
    std = np.sqrt((w * (s**2 + (m - mean) ** 2)).sum(2, keepdims=True))
    y = np.linspace(-9, 9, 401)
    p = (w * scipy.stats.norm.pdf(mean + std * y[:, None], m, s)).sum(2) * std[:, 0]
    return scipy.special.rel_entr(p, scipy.stats.norm.pdf(y)).sum(1) * (y[1] - y[0])


def around(p: Mixture) -> tuple[jax.Array, jax.Array]:
    """Points, and weights whose sum with any function of them is its mean under p."""
    near = p.moments()
    z = near.mean + near.std * jnp.linspace(-6, 6, 201)
    return z, jax.nn.softmax(p.log_prob(z))


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def roughness(s: Chain, t: Any) -> jax.Array:
    """E[(d^3 log p(z_t) / dz_t^3)^2] / 12: what the divergence of a step of variance delta is, over delta^3."""
    p = DATA.diffused(s, t)
    z, weight = around(p)
    return weight @ jax.vmap(jax.grad(jax.grad(lambda z: p.score(z[None])[0])))(z) ** 2 / 12


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def reverse(s: Chain, t: Any, earlier: Any) -> tuple[jax.Array, Mixture]:
    """Weights of values of z_t, and q(z_s | z_t) for each."""
    z, weight = around(DATA.diffused(s, t))
    return weight, DATA.reverse(s, z, t, earlier)


def errors(s: Chain, t: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """E[KL(q(z_s | z_t) || the nearest normal)] of each of a list of steps."""
    weights, q = reverse(s, t, earlier)
    steps = [jax.tree.map(lambda part, i=i: part[i], q) for i in range(len(t))]
    return np.array([weight @ kl_to_normal(step) for weight, step in zip(np.asarray(weights), steps, strict=True)])


def limit(values: np.ndarray) -> tuple[float, float]:
    """Where values whose error halves from each to the next are going, and a bound on what is left of the error."""
    last, before = values[-1], values[-2]
    return 2 * last - before, abs(last - before)


@partial(jax.jit, static_argnames=("num_draws", "num_bins"))
def table(key: Any, num_draws: int, num_bins: int) -> tuple[jax.Array, jax.Array]:
    """The simplest network, a table over bins of z_t, taught draws of x: its error, and what theory says of it.

    Bins are equally likely, so that the theory's value, the sum of Var[x | bin] / (draws p(bin)) p(bin), is as simple.
    """
    p = DATA.diffused(SCHEDULE, T)
    line = jnp.linspace(-5, 5, 20_001)
    of_line = jnp.clip((p.cdf(line) * num_bins).astype(int), 0, num_bins - 1)
    given_z = jax.vmap(Mixture.moments)(DATA.reverse(SCHEDULE, line, T, 0))
    weight = jax.nn.one_hot(of_line, num_bins) * jnp.exp(p.log_prob(line))[:, None]
    weight = weight / weight.sum(0)
    mean = given_z.mean @ weight
    var = (given_z.std**2 + given_z.mean**2) @ weight - mean**2

    x_key, eps_key = jax.random.split(key)
    x = DATA.sample(x_key, num_draws)
    z = forward.diffuse(SCHEDULE, x, T, jax.random.normal(eps_key, x.shape))
    of_z = jnp.clip((p.cdf(z) * num_bins).astype(int), 0, num_bins - 1)
    count = jnp.zeros(num_bins).at[of_z].add(1)
    learned = jnp.zeros(num_bins).at[of_z].add(x) / count
    return jnp.mean((learned - mean) ** 2), jnp.sum(var) / num_draws


@jax.jit
def against_truth(params: Any) -> jax.Array:
    """E[(network - E[x | z_t])^2]: how far a network is from what it has never been shown."""
    z, weight = around(DATA.diffused(SCHEDULE, T))
    return weight @ (NET.bind(params)(z, T) - DATA.denoiser(SCHEDULE).predict(z, T)) ** 2


@partial(jax.jit, static_argnames="num_draws")
def two_losses(params: Any, num_draws: int) -> tuple[jax.Array, jax.Array]:
    """The loss with draws of x, minus that with E[x | z_t] in their place: mean over draws, and standard error."""
    x_key, eps_key = jax.random.split(jax.random.key(7))
    x = DATA.sample(x_key, num_draws)
    eps, t = jax.random.normal(eps_key, x.shape), jnp.full(num_draws, T)
    predict = NET.bind(params)
    z = forward.diffuse(SCHEDULE, x, t, eps)
    seen = SquaredError()(Denoiser(predict, SCHEDULE, target=X()), x, Draws(t, eps))
    unseen = (predict(z, t) - DATA.denoiser(SCHEDULE).predict(z, t)) ** 2
    return jnp.mean(seen - unseen), jnp.std(seen - unseen) / jnp.sqrt(num_draws)


@jax.jit
def floor() -> jax.Array:
    """E[Var[x | z_t]], below which no loss can fall."""
    z, weight = around(DATA.diffused(SCHEDULE, T))
    return weight @ jax.vmap(Mixture.moments)(DATA.reverse(SCHEDULE, z, T, 0)).std ** 2


def train(stops: tuple[int, ...]) -> list[Any]:
    """Parameters of the network after each of these numbers of training steps."""
    recipe = Recipe(NET, SCHEDULE, target=X(), timesteps=Always(T), ema=PowerEma())
    state, params = None, []
    for start, stop in zip((0, *stops), stops, strict=False):
        state, _ = fit(jax.random.key(1), recipe, lambda key: DATA.sample(key, BATCH), stop - start, state)
        params.append(state.ema_params[0])
    return params


def steps_and_chains(chains: tuple[int, ...]) -> tuple[list[Claim], dict[str, Any]]:
    """Divergences of single steps and of whole chains from the nearest normals, against theory."""
    t, size = (grid.ravel() for grid in np.meshgrid(LOOKED_AT, 2 ** np.arange(7), indexing="ij"))
    delta = np.asarray(SCHEDULE.step(t, t - size).forward_var, np.float64)
    kl = errors(SCHEDULE, t, t - size)
    curves = {one: (delta[t == one], kl[t == one]) for one in LOOKED_AT}
    constants = np.asarray(roughness(SCHEDULE, np.arange(SCHEDULE.num_steps + 1)), np.float64)

    delta, kl = (values[3::-1] for values in curves[T])  # falling
    slope, slope_error = limit(np.diff(np.log(kl)) / np.diff(np.log(delta)))
    constant, constant_error = limit(kl / delta**3)

    fall = -np.log1p(-schedule.Linear().betas()) * SCHEDULE.num_steps  # -d log alpha_bar / du, u = t / T
    theory = float(np.mean(fall**3 * (constants[1:] + constants[:-1]) / 2))
    sums = [errors(schedule.Linear(k).build(), np.arange(1, k + 1), np.arange(k)).sum() for k in chains]
    chain, chain_error = limit(np.array(chains) ** 2 * sums)
    extrapolated = "extrapolated to δ = 0; ± the last halving's change"
    claims = [
        Claim("a step's KL to the nearest normal: its order in δ = β_t|s", slope, 3, slope_error, extrapolated),
        Claim(f"the same KL / δ³, t = {T}", constant, constants[T], constant_error, "E[(∂³ log p)²] / 12; likewise"),
        Claim("K² × its sum over a chain of K steps", chain, theory, chain_error, "∫ (−d log ᾱ / du)³ E[..] / 12 du"),
    ]
    return claims, {"curves": curves, "constants": {t: constants[t] for t in LOOKED_AT}}


def measure(
    num_draws: int = 4000,
    chains: tuple[int, ...] = (64, 128, 256),
    table_draws: tuple[int, ...] = (4_000, 40_000, 400_000),
    repeats: int = 20,
    stops: tuple[int, ...] = (50, 150, 500, 1600),
) -> Findings:
    """A mixture's exact q(z_s | z_t), what the best normal loses on it, and what is learned from draws of x alone."""
    one = {name: jax.device_get(one_step(earlier, num_draws)) for name, earlier in STEPS.items()}
    by_quadrature = max(np.abs(step["average"] - step["exact"]).max() / step["exact"].max() for step in one.values())
    by_draws = max(float(step["standard_errors"]) for step in one.values())

    step_claims, step_shown = steps_and_chains(chains)

    keys = jax.random.split(jax.random.key(2), repeats)
    tables = {n: np.array([table(key, n, num_bins=40) for key in keys], np.float64) for n in table_draws}
    ratios = {n: both[:, 0] / both[:, 1] for n, both in tables.items()}
    off = max(abs(ratio.mean() - 1) / (ratio.std(ddof=1) / np.sqrt(repeats)) for ratio in ratios.values())

    params = train(stops)
    var, size = float(floor()), sum(leaf.size for leaf in jax.tree.leaves(params[0]))
    network = np.array([float(against_truth(one)) for one in params])
    unbiased = max(abs(float(mean) - var) / float(error) for mean, error in (two_losses(one, 10**5) for one in params))
    seen = BATCH * np.array(stops)
    limits = size * var / seen
    claims = [
        Claim("q(z_s | z_t) − E[q(z_s | z_t, x) | z_t]", by_quadrature, 0, 1e-5, "over its peak; float32"),
        Claim("the same with draws of x, in standard errors", by_draws, 0, 5, "worst of some twenty normals: 2.2"),
        *step_claims,
        Claim("loss with draws of x − loss with E[x | z_t]", unbiased, 0, 4, "E[Var[x | z_t]]; in standard errors"),
        Claim("table's error × draws, against theory", off, 0, 5, "Σ Var[x | bin]; in standard errors"),
        Claim(
            f"network's error after {seen[-1]:,} draws",
            network[-1],
            limits[-1],
            0,
            f"{size:,} parameters × E[Var[x | z_t]] / draws",
            "<",
        ),
    ]
    shown = {
        "one": one,
        "table": {n: both.mean(0) for n, both in tables.items()},
        "network": (seen, network),
        "var": var,
    }
    return Findings(claims, {**shown, **step_shown})


def draw(figure: Any, one: dict, curves: dict, constants: dict, table: dict, network: tuple, var: float) -> None:
    """What is averaged over; what a normal loses on the average; what is learned of the average from draws."""
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    above, below = left.subplots(2, 1, sharex=True)
    for axes, (name, step) in zip((above, below), one.items(), strict=True):
        axes.plot(step["y"], step["given_x"], color="C5", linewidth=0.7, alpha=0.7)
        axes.plot([], [], color="C5", label="$q(z_s | z_t, x)$, many $x$")
        axes.plot(step["y"], step["exact"], color="C1", linewidth=2.5, label="$q(z_s | z_t)$")
        axes.set(title=f"{name.capitalize()}, $s$ = {STEPS[name]}", ylabel="density")
    below.set(xlabel=f"$z_s$ ($t$ = {T})", xlim=(-3, 3))
    above.set_ylim(0, 1.4 * float(np.max(one["a large step"]["given_x"])))
    above.legend(loc="upper left", handlelength=1, borderaxespad=0)
    middle, last = right.subplots(1, 2)
    for (t, (delta, kl)), marker in zip(curves.items(), "os^Dv", strict=False):
        middle.loglog(delta, kl, marker, markersize=4, label=f"$t$ = {t}")
        middle.loglog(delta, constants[t] * delta**3, color=middle.lines[-1].get_color(), linewidth=1)
    middle.set(
        title="What a normal loses", xlabel=r"variance $\delta$ of the step", ylabel="KL, nats", ylim=(3e-15, 0.1)
    )
    middle.legend(title=r"lines: $c_t\ \delta^3$", loc="lower right", handletextpad=0.1, borderaxespad=0.1)
    draws = np.array(list(table))
    measured, theory = np.array(list(table.values())).T
    last.axhline(var, color="C6", linestyle="--", label="least loss: $E\\ Var[x | z_t]$")
    last.loglog(draws, measured, "o", color="C0", label="table of 40 bins")
    last.loglog(draws, theory, color="C0", linewidth=1, label="the same, theory")
    last.loglog(*network, "s-", color="C1", label="network")
    last.set(title="What draws of $x$ teach", xlabel="draws", ylabel=r"error to $E[x | z_t]$, squared")
    last.tick_params(axis="x", which="minor", labelbottom=False)
    low = min(*measured, *theory, *network[1])
    last.set_ylim(low / 2, var * (var / low) ** 0.5)  # the legend is above the lines
    last.legend(loc="upper left", handlelength=1.4, borderaxespad=0)


NOTE = Note(
    __file__,
    "Optimising without seeing the target",
    "The many q(z_s | z_t, x) that z_t is compatible with and their average, what a normal loses on that average as "
    "steps shrink, and how draws of x alone teach its mean.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
