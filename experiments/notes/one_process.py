"""One process: DDPM, EDM and rectified flow read one network, and differ only in scale, in clock and in weights.

    python experiments/notes/one_process.py

The derivation is beside this file, in one_process.md.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from note import DASHES, Claim, Findings, Note

from ddpm_jax.diffusion import objective, targets
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import LogSnr, Uniform
from ddpm_jax.diffusion.likelihood import log_likelihood, velocity
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.process import Process, RectifiedFlow, VarianceExploding, VariancePreserving
from ddpm_jax.diffusion.targets import Edm, V, Velocity
from ddpm_jax.diffusion.timesteps import LogitNormal
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.sampling import Ddim, Heun, Sampler, UniPc, sample, sample_path
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

DATA = Mixture.of([0.3, 0.5, 0.2], [[-1.3], [0.1], [1.2]], [0.2, 0.3, 0.15])
POINT = Mixture.of([1.0], [[0.8]], [0.0])
NET = Mlp(width=64, depth=2)
# noise / signal from 1 / 100 to 100 in all of them.
SIGMA = 100.0
VP = VariancePreserving(2 * np.log(SIGMA), -2 * np.log(SIGMA), "cosine")
VE = VarianceExploding(1 / SIGMA, SIGMA, sigma_data=1.0)
FLOW = RectifiedFlow(1 / (1 + SIGMA), SIGMA / (1 + SIGMA))
PROCESSES = {"variance preserving": VP, "variance exploding": VE, "rectified flow": FLOW}
STARTS = jnp.linspace(-2, 2, 9)[:, None]  # z / sqrt(S) at the noisy end


def scale(process: Process, t: Any) -> jax.Array:
    """sqrt(S_t), the standard deviation of z_t for data of variance 1."""
    return jnp.hypot(process.signal(t), process.noise(t))


def spread(values: list[Any]) -> float:
    """The largest difference of any array of the list from the first."""
    return max(float(jnp.abs(value - values[0]).max()) for value in values)


def follow(model: Denoiser, sampler: Sampler, y: jax.Array) -> jax.Array:
    """x from z = sqrt(S) y at the noisy end."""
    process = model.process
    start = scale(process, process.last) * y, process.last
    return sample(jax.random.key(0), model, sampler, y.shape, start=start)


def train(num_steps: int) -> Denoiser:
    """A network that predicts v of the variance-preserving process."""
    recipe = Recipe(NET, VP, V(), update=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)))
    state, _ = fit(jax.random.key(0), recipe, lambda key: DATA.sample(key, 512), num_steps)
    return Denoiser(NET.bind(state.params, VP), VP, V())


def measure(train_steps: int = 2000, count: int = 2000, draws: int = 100_000) -> Findings:
    """One trained network read on three processes, and the exact one."""
    model, off = train(train_steps), errors((5, 10, 20, 40, 80, 160))
    claims = [*one_function(model, count), *one_flow(model, count), *what_differs(off, draws)]
    return Findings(claims, shown(off))


def one_function(model: Denoiser, count: int) -> list[Claim]:
    """What the network says, and what it loses, at equal SNRs."""
    log_snr = jnp.linspace(-9, 9, count)
    t = {name: process.time(log_snr) for name, process in PROCESSES.items()}
    x, eps = DATA.sample(jax.random.key(1), count), jax.random.normal(jax.random.key(2), (count, 1))

    def latent(process: Process, t: Any) -> jax.Array:
        return process.signal(t)[:, None] * x + process.noise(t)[:, None] * eps

    z = {name: latent(process, t[name]) for name, process in PROCESSES.items()}
    y = [z[name] / scale(process, t[name])[:, None] for name, process in PROCESSES.items()]
    exact = [DATA.denoiser(process).denoise(z[name], t[name]).x for name, process in PROCESSES.items()]
    read = {name: model.on(process) for name, process in PROCESSES.items()}

    def said(name: str, target: targets.Target) -> jax.Array:
        output, process = read[name].output(z[name], t[name])[0], PROCESSES[name]
        return jnp.asarray(targets.convert(process, output, z[name], t[name], read[name].target, target))

    vp, ve, flow = PROCESSES
    v, f, u = said(vp, V()), said(ve, Edm(1.0)), said(flow, Velocity())
    cos, sin = VP.signal(t[vp])[:, None], VP.noise(t[vp])[:, None]
    turned = (sin - cos) * z[vp] + (sin + cos) * v

    def losses(name: str, target: targets.Target) -> jax.Array:
        one = Denoiser(partial(convert_on, read[name], target), PROCESSES[name], target)
        given = objective.Draws(t[name], eps)
        return objective.SquaredError()(one, x, given)

    of_v, of_f, of_u = losses(vp, V()), losses(ve, Edm(1.0)), losses(flow, Velocity())
    large = of_v > 1e-2  # where the quotient keeps its digits
    factor = jnp.abs(of_u / of_v - 1 - 1 / jnp.cosh(log_snr / 2))
    return [
        Claim("z / √S at equal SNR, of three processes: largest difference", spread(y), 0, 1e-4, "one latent; float32"),
        Claim("the exact E[x | z_t] there", spread(exact), 0, 1e-4, "a function of z / √S and SNR"),
        Claim("EDM's F + v, of one trained network", float(jnp.abs(f + v).max()), 0, 1e-4, "F = −v, for σ_data = 1"),
        Claim("flow's ε − x from v, likewise", spread([u, turned]), 0, 1e-4, "(sin φ − cos φ) z + (sin φ + cos φ) v"),
        Claim("EDM's loss − the loss of v, each example", spread([of_v, of_f]), 0, 1e-4, "equal, as F = −v"),
        Claim(
            "flow's loss / that of v, off 1 + 1/cosh(λ/2)", float(factor[large].max()), 0, 1e-3, "λ = log SNR; float32"
        ),
    ]


def convert_on(model: Denoiser, target: targets.Target, z: Any, t: Any) -> Any:
    """The output of a denoiser's network, as one trained for `target` would give it."""
    return targets.convert(model.process, model.output(z, t)[0], z, t, model.target, target)


def one_flow(model: Denoiser, count: int) -> list[Claim]:
    """Samplers and the likelihood of one trained network, read on three processes."""
    read = [model.on(process) for process in PROCESSES.values()]
    y = jax.random.normal(jax.random.key(3), (count, 1))
    claims = [
        Claim(
            f"x by {type(sampler).__name__}, {sampler.num_steps} steps at equal SNRs: largest difference",
            spread([follow(one, sampler, y) for one in read]),
            0,
            1e-4,
            "the same image from the same z_T / √S_T",
        )
        for sampler in (Ddim(20, LogSnr()), UniPc(20, LogSnr()), Heun(20))
    ]
    x = DATA.sample(jax.random.key(4), min(count, 200))
    options: dict[str, Any] = {"trace": "exact", "bins": None, "tolerance": 1e-5}
    nats = [log_likelihood(jax.random.key(5), one, x, **options).log_prob for one in read]
    return [
        *claims,
        Claim("log p(x) by the three flows: largest difference, nats", spread(nats), 0, 0.01, "one density"),
    ]


def euler(model: Denoiser, times: Any, y: jax.Array) -> jax.Array:
    """Euler's method for dz/dt in t, down to the clean end."""
    z = scale(model.process, times[0]) * y
    for t, s in itertools.pairwise(times):
        z = z + (s - t) * velocity(model, z, jnp.float32(t))
    return z


def ddim(model: Denoiser, times: Any, y: jax.Array) -> jax.Array:
    """DDIM on the same times."""
    z = scale(model.process, times[0]) * y
    for t, s in itertools.pairwise(times):
        z = model.process.step(t, s).deterministic(z, model.denoise(z, jnp.full(len(z), t)).x)
    return z


def errors(counts: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, list[float]]]:
    """The root mean squared error of DDIM on even steps in t, with the exact network, for each process."""
    y = jnp.asarray(norm.ppf((jnp.arange(200) + 0.5) / 200))[:, None]
    best = follow(DATA.denoiser(FLOW), UniPc(1000, LogSnr()), y)

    def off(process: Process, count: int) -> float:
        x = follow(DATA.denoiser(process), Ddim(count, Uniform()), y)
        return float(jnp.sqrt(jnp.mean((x - best) ** 2)))

    return counts, {name: [off(process, count) for count in counts] for name, process in PROCESSES.items()}


def what_differs(off: tuple[tuple[int, ...], dict[str, list[float]]], draws: int) -> list[Claim]:
    """The shape of paths, the clock, and the density of t."""
    point, exact = POINT.denoiser(FLOW), DATA.denoiser(FLOW)
    times = np.linspace(FLOW.last, FLOW.first, 11)
    path = sample_path(jax.random.key(0), point, Ddim(100, Uniform()), STARTS.shape, 101).frames[:-1, :, 0]
    bend = float(jnp.abs(jnp.diff(path, n=2, axis=0)).max())
    apart = spread([ddim(exact, times, STARTS), euler(exact, times, STARTS)])
    t, _ = LogitNormal().draw(jax.random.key(6), (), FLOW, draws)
    log_sigma = -FLOW.log_snr(t) / 2
    orders = [np.log2(of_each[-2] / of_each[-1]) for of_each in off[1].values()]
    return [
        Claim("flow's path to a point: largest second difference", bend, 0, 1e-5, "a straight line in t"),
        Claim("Euler's method in the flow's t − DDIM, 10 steps", apart, 0, 1e-5, "one method: signal, noise linear"),
        Claim("logit-normal t as log σ: mean", float(log_sigma.mean()), 0, 0.02, "LogNormalSigma(0, 1); 6 s.e."),
        Claim("the same: standard deviation", float(log_sigma.std()), 1, 0.06, "log σ = logit t; ends cut at 0.01"),
        Claim("DDIM on even t: order, least of three", float(min(orders)), 1, 0.15, "first order on every clock"),
        Claim("the same: largest of three", float(max(orders)), 1, 0.15, "the clock changes only the constant"),
    ]


def path_of(process: Process, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """(t, z_t) of the exact flow from STARTS, at times that are even in log SNR, and in t."""
    both = [np.linspace(process.first, process.last, 150), LogSnr().times(process, 300)[:-1]]
    times = np.unique(np.concatenate(both).astype(np.float32))[::-1]
    model = mixture.denoiser(process)

    def move(z: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
        z = step.deterministic(z, model.denoise(z, jnp.full(len(z), step.t)).x)
        return z, z

    first = scale(process, times[0]) * STARTS
    _, rest = jax.jit(lambda z, steps: jax.lax.scan(move, z, steps))(first, process.step(times[:-1], times[1:]))
    return times, np.concatenate([first[None], rest])[..., 0]


def weights(log_snr: jax.Array) -> dict[str, jax.Array]:
    """How much of the loss, in units of the error of v, each recipe spends on each log SNR: areas are 1."""
    t = VP.time(log_snr)
    density = {
        "variance preserving": 1 / VP.log_snr_rate(t),
        "variance exploding": norm.pdf(-log_snr / 2, -1.2, 1.2) / 2,
        "rectified flow": norm.pdf(-log_snr / 2) / 2 * (1 + 1 / jnp.cosh(log_snr / 2)),
    }
    width = log_snr[1] - log_snr[0]
    return {name: value / (value.sum() * width) for name, value in density.items()}


def shown(off: Any) -> dict[str, Any]:
    """Paths with the exact network, weights over log SNR, and errors of DDIM on even steps."""
    log_snr = jnp.linspace(-9, 9, 181)
    return {
        "paths": {name: path_of(process, DATA) for name, process in PROCESSES.items()},
        "points": {name: path_of(process, POINT) for name, process in PROCESSES.items()},
        "spent": (log_snr, weights(log_snr)),
        "off": off,
    }


def draw(figure: Any, paths: dict, points: dict, spent: tuple, off: tuple) -> None:
    """Paths on each clock, the same paths scaled, weights, errors."""
    axes = figure.subplots(2, 3)
    for i, (name, (t, z)) in enumerate(paths.items()):
        ax, look = axes[0, i], {"color": f"C{i}", "linewidth": 1.1}
        ax.plot(t, z, **look)
        ax.plot(points[name][0], points[name][1][:, [2, 6]], color="#222222", linestyle="--", linewidth=1)
        ax.set(title=name.capitalize(), xlabel="$t$", ylabel="$z_t$")
    axes[0, 1].set(ylim=(-6, 6))
    for i, (name, (t, z)) in enumerate(paths.items()):
        process = PROCESSES[name]
        y = z / np.asarray(scale(process, t))[:, None]
        every = slice(None) if i == 0 else slice(20 * i, None, 60)
        look = {"color": f"C{i}", "linestyle": "-" if i == 0 else "none", "marker": ("", "o", "x")[i], "markersize": 3}
        axes[1, 0].plot(np.asarray(process.log_snr(t))[every], y[every], **look)
    axes[1, 0].set(title="One flow", xlabel="log SNR", ylabel="$z_t / \\sqrt{S_t}$")
    axes[1, 0].invert_xaxis()
    for i, name in enumerate(paths):
        look = {"color": f"C{i}", "linestyle": DASHES[i], "label": name}
        axes[1, 1].plot(spent[0], spent[1][name], **look)
        axes[1, 2].loglog(off[0], off[1][name], **look)
    axes[1, 1].set(title="Weight of the loss", xlabel="log SNR", ylabel="density", ylim=(0, None))
    axes[1, 1].invert_xaxis()
    axes[1, 2].set(title="DDIM on even $t$", xlabel="steps", ylabel="error of $x$, RMS")
    figure.legend(*axes[1, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3)


NOTE = Note(
    __file__,
    "One process",
    "Above: the flow of one mixture on three processes, from the same scaled starts; dashed, two paths to a single "
    "point, straight only on rectified flow. Below: scaled by its standard deviation and drawn over log SNR, it is one "
    "flow. What differs is where the loss looks, and how long steps that are even in t are.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
