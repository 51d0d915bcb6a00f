"""Plinko: the decoder drops z_T through a board of tilted pins, and the last tilts decide in which mode it lands.

    python experiments/notes/plinko.py

The derivation is beside this file, in plinko.md.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array
from note import Claim, Findings, Note

from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.variance import FixedLarge
from ddpm_jax.sampling import Ancestral, Heun, Path, Sampler, sample_path

DATA = Mixture.of(weights=[0.5, 0.3, 0.2], means=[-1.2, 0.4, 1.6], stds=[0.12, 0.10, 0.12])
LINE = jnp.linspace(-7, 7, 4001)  # for integrals over z_t
LEVEL, TILTED = "level pins", "tilted pins"

# A walk that is looked at only once a step meets a level as does one looked at always a level that is so many
# standard deviations of a step further off: -zeta(1/2) / sqrt(2 pi) (Siegmund 1979; Chang & Peres 1997).
OVERSHOOT = 0.5826


def fall(s: Chain, sampler: Sampler, count: int, start: Any = None) -> Path:
    """Paths of `sampler`, with the best possible network, at every t."""
    model = replace(DATA.denoiser(s), variance=FixedLarge())
    return sample_path(jax.random.key(0), model, sampler, (count,), s.num_steps + 1, start=start)


def mode(x: Any) -> np.ndarray:
    """The mode that x lies in."""
    return np.asarray(DATA.responsibilities(x).argmax(1))


@jax.jit
def ranks(s: Chain, path: Path) -> Array:
    """F_t(z_t), the exact cdf, at every frame: [frames, paths]."""
    return jax.lax.map(lambda at: DATA.diffused(s, at[0]).cdf(at[1]), (path.t, path.frames))


@jax.jit
def along(s: Chain, path: Path, final: Array) -> tuple[Array, Array]:
    """(p(final mode | z_t), whether that is above 1/2) at every frame but the last, x: [T, paths]."""

    def look(at: tuple[Array, Array]) -> tuple[Array, Array]:
        t, z = at
        p, reach = DATA.diffused(s, t), OVERSHOOT * jnp.sqrt(s.beta[t])
        here, left, right = (
            jnp.take_along_axis(p.responsibilities(y), final[:, None], 1)[:, 0] for y in (z, z - reach, z + reach)
        )
        return here, jnp.minimum(left, right) > 0.5

    return jax.lax.map(look, (path.t[:-1], path.frames[:-1]))


@jax.jit
def expected(s: Chain, times: Array) -> tuple[Array, Array, Array]:
    """E of sum_k p(k | z_t)^2, of sum_k p(k | z_t)^3, and of sum_k max(2 p(k | z_t) - 1, 0), by quadrature: [times]."""

    def at(t: Array) -> Any:
        p = DATA.diffused(s, t)
        density, k = jnp.exp(p.log_prob(LINE)), p.responsibilities(LINE)
        inside = (k**2, k**3, jnp.maximum(2 * k - 1, 0))
        return tuple(jnp.trapezoid(density * values.sum(1), LINE) for values in inside)

    return jax.lax.map(at, times)


def pins(bins: np.ndarray) -> list[np.ndarray]:
    """Each pin's chance to send a ball to the right, [row + 1] in each row, such that balls end as `bins` says."""
    h = bins / scipy.stats.binom.pmf(np.arange(len(bins)), len(bins) - 1, 0.5)
    rows = []
    while len(h) > 1:
        left, right, h = h[:-1] / 2, h[1:] / 2, (h[:-1] + h[1:]) / 2
        rows.append(
            np.divide(right, left + right, out=np.full(len(h), np.nan), where=h > 0)
        )  # nan: no ball comes there
    return rows[::-1]


def drop(board: list[np.ndarray], count: int) -> np.ndarray:
    """How often each ball has gone to the right, after 0, 1, ... rows: [rows + 1, balls]."""
    rng, places = np.random.default_rng(0), [np.zeros(count, int)]
    for row in board:
        places.append(places[-1] + (rng.random(count) < row[places[-1]]))
    return np.array(places)


def boards(rows: int) -> dict[str, np.ndarray]:
    """The shares of balls in the rows + 1 bins, 2 / sqrt(rows) wide: normal, or as the data have it."""
    edges = (2 * np.arange(1, rows + 1) - 1 - rows) / np.sqrt(rows)
    below = np.concatenate([[0.0], np.asarray(DATA.cdf(edges), np.float64), [1.0]])
    return {LEVEL: scipy.stats.binom.pmf(np.arange(rows + 1), rows, 0.5), TILTED: np.diff(below)}


def distance_to_normal(rows: int) -> float:
    """The Kolmogorov-Smirnov distance of where a ball ends on a level board to the normal."""
    k = np.arange(rows + 1)
    normal = scipy.stats.norm.cdf((2 * k - rows) / np.sqrt(rows))
    binomial = scipy.stats.binom(rows, 0.5)
    return max(np.abs(binomial.cdf(k) - normal).max(), np.abs(binomial.cdf(k - 1) - normal).max())


def measure(count: int = 10_000, num_steps: int = 1000, rows: int = 14) -> Findings:
    """Paths of both samplers, and balls on boards, against what is known exactly."""
    s = schedule.Linear(num_steps).build()
    starts = jnp.asarray(scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400), jnp.float32)
    sde, ode = fall(s, Ancestral(), count), fall(s, Heun(num_steps), 400, (starts, num_steps))
    sde_ranks, ode_ranks = np.asarray(ranks(s, sde)), np.asarray(ranks(s, ode))
    deciding, decided = decision_claims(s, sde)
    bins = boards(rows)
    balls = {name: drop(pins(shares), count) for name, shares in bins.items()}
    claims = [
        *density_claims(sde, sde_ranks),
        *deciding,
        *rank_claims(s, sde, sde_ranks, ode, ode_ranks),
        *board_claims(bins, balls),
    ]
    line = jnp.linspace(-3.4, 3.4, 341)
    density = jax.lax.map(lambda t: jnp.exp(DATA.diffused(s, t).log_prob(line)), sde.t)
    shown = {
        "density": (np.asarray(line), np.asarray(sde.t), np.asarray(density)),
        "paths": {"sde": np.asarray(sde.frames[:, :18]), "ode": np.asarray(ode.frames[:, 8::16])},
        "ends": {"sde": np.asarray(sde.x), "ode": np.asarray(ode.x)},
        "decided": decided,
        "board": (pins(bins[TILTED]), balls[TILTED], bins[TILTED]),
    }
    return Findings(claims, shown)


def far(count: int) -> tuple[float, str]:
    """A Kolmogorov-Smirnov distance that `count` draws rarely reach, and how rarely."""
    return 2.2 / np.sqrt(count), "2.2 / √paths: 1 in 8,000"


def density_claims(sde: Path, its_ranks: np.ndarray) -> list[Claim]:
    """Where the stochastic paths are, at 20 t and at the end."""
    count, weights = len(sde.x), np.asarray(DATA.weights)
    share = np.bincount(mode(sde.x), minlength=len(weights)) / count
    share_error = np.abs(share - weights) / np.sqrt(weights * (1 - weights) / count)
    looked_at = (len(its_ranks) - 1) * np.arange(1, 21) // 20
    distance = max(scipy.stats.kstest(row, "uniform").statistic for row in its_ranks[looked_at])
    limit, because = far(count)
    return [
        Claim("SDE: share in each mode, largest error in standard errors", share_error.max(), 0, 4, "weights of p(x)"),
        Claim("SDE: Kolmogorov-Smirnov distance to p(z_t), largest", distance, 0, limit, because + " for one t"),
    ]


def decision_claims(s: Chain, sde: Path) -> tuple[list[Claim], tuple[np.ndarray, np.ndarray]]:
    """When the stochastic paths' modes are decided; the share that is, by t, measured and in theory."""
    count, looked_at = len(sde.x), s.num_steps * np.arange(1, 20) // 20
    here, above = (np.asarray(part) for part in along(s, sde, mode(sde.x)))
    squares, cubes, theory = (np.asarray(part) for part in expected(s, sde.t[:-1]))
    here_error = (np.abs(here.mean(1) - squares) * np.sqrt(count / (cubes - squares**2 + 1e-9)))[looked_at]
    decided = np.logical_and.accumulate(above[::-1])[::-1].mean(1)
    limit, because = far(count)
    claims = [
        Claim(
            "SDE: mean p(final mode | z_t), largest error in standard errors",
            here_error.max(),
            0,
            4,
            "E of Σ_k p(k | z_t)², at 19 t",
        ),
        Claim(
            "SDE: share of paths decided by t, largest error",
            np.abs(decided - theory).max(),
            0,
            limit,
            "E of Σ_k max(2 p(k | z_t) − 1, 0); " + because,
        ),
    ]
    return claims, (decided, theory)


def rank_claims(s: Chain, sde: Path, sde_ranks: np.ndarray, ode: Path, ode_ranks: np.ndarray) -> list[Claim]:
    """What a path's rank among all paths at T says of its end."""
    weights = np.asarray(DATA.weights)
    said = [np.searchsorted(np.cumsum(weights)[:-1], rank[0]) for rank in (sde_ranks, ode_ranks)]
    chance = np.sum(weights**2)
    last_step = np.max(weights * np.asarray(s.noise(1) / DATA.stds) ** 2)
    return [
        Claim(
            "SDE: share that end where their rank at T says",
            np.mean(said[0] == mode(sde.x)),
            chance,
            4 * np.sqrt(chance * (1 - chance) / len(sde.x)),
            "by chance only, Σ w²; 4 standard errors",
        ),
        Claim("ODE: paths that end elsewhere", np.sum(said[1] != mode(ode.x)), 0, 0, "x = F_0⁻¹(F_T(z_T))"),
        Claim(
            "ODE: drift of the rank F_t(z_t), largest",
            np.abs(ode_ranks - ode_ranks[0]).max(),
            0,
            last_step / 4,
            "w / 4 (noise_1 / std)²: twice the last step's error",
        ),
    ]


def board_claims(bins: dict[str, np.ndarray], balls: dict[str, np.ndarray]) -> list[Claim]:
    """Where balls end on a level board and on a tilted one."""
    count = balls[LEVEL].shape[1]
    ended = {name: np.bincount(places[-1], minlength=len(bins[name])) / count for name, places in balls.items()}
    off = max(np.abs(np.cumsum(ended[name] - bins[name])).max() for name in bins)
    return [
        Claim("boards: distance of the balls' places to the bins asked for", off, 0, *far(count)),
        Claim(
            "level board of 1,000 rows: distance to the normal, times √rows",
            distance_to_normal(1000) * np.sqrt(1000),
            1 / np.sqrt(2 * np.pi),
            1e-3,
            "1 / √(2π), half the middle bin; relative error of order 1 / rows",
        ),
    ]


def draw_board(axes: Any, board: list[np.ndarray], places: np.ndarray, bins: np.ndarray) -> None:
    """The pins, each turned as it sends the balls; a few balls' ways; the bins."""
    rows, width = len(board), 1 / np.sqrt(len(board))
    at = (2 * np.arange(rows + 1) - rows) * width
    color = [f"C{k}" for k in mode(at)]
    y = np.arange(rows + 1)
    for way in places[:, :30].T:
        axes.plot((2 * way - y) * width, y - 0.5, color=color[way[-1]], linewidth=1, alpha=0.35)
    for row, chances in enumerate(board):
        x, tilt = (2 * np.arange(row + 1) - row) * width, 0.9 * (chances - 0.5)
        axes.plot([x - 0.5 * width, x + 0.5 * width], [row - tilt, row + tilt], color="#222222", linewidth=1.2)
    floor, heights = rows + 5, 5.3 * bins / bins.max()
    axes.bar(at, -heights, bottom=floor, width=1.7 * width, color=color)
    axes.axhline(floor, color="#222222", linewidth=0.8)
    axes.set(title="Tilted pins", xlim=(-3.4, 3.4), ylim=(floor, -1), xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)


def draw_fall(above: Any, below: Any, density: tuple, paths: np.ndarray, ends: np.ndarray) -> None:
    """Paths over p(z_t), t downwards, and a histogram of where they end."""
    line, t, p = density
    above.pcolormesh(line, t, p / p.max(1, keepdims=True), cmap="Greys", vmax=1.8, shading="nearest", rasterized=True)
    some = len(t) - 1 - np.unique((len(t) - 1) * np.linspace(0, 1, 130) ** 2 // 1).astype(int)  # even on the axis
    for path, k in zip(paths[some].T, mode(paths[-1]), strict=True):
        above.plot(path, t[some], color=f"C{k}", linewidth=0.8)
    above.set(xlim=(line[0], line[-1]), ylim=(0, t[0]))
    above.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    above.set_yticks(t[0] * np.array([0, 1, 4, 9, 16, 25]) // 25)
    above.grid(visible=False)
    above.tick_params(labelbottom=False)
    below.plot(line, p[-1], color="#222222", linewidth=1)
    bins = np.linspace(line[0], line[-1], 80)
    for k in range(len(DATA.weights)):
        heights, _ = np.histogram(ends[mode(ends) == k], bins)
        below.stairs(heights / len(ends) / np.diff(bins), bins, fill=True, color=f"C{k}", alpha=0.6)
    below.set(xlim=(line[0], line[-1]), xlabel="$z_t$, and $z_0$ below", yticks=[])
    below.spines["left"].set_visible(False)


def draw(figure: Any, density: tuple, paths: dict, ends: dict, decided: tuple, board: tuple) -> None:
    """Both samplers' paths falling through p(z_t); a board with tilted pins; when the mode is decided."""
    falls, beside = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    axes = falls.subplots(2, 2, height_ratios=(4, 1), sharex=True)
    for column, (name, title) in enumerate((("sde", "Stochastic: Ancestral"), ("ode", "Deterministic: Heun"))):
        draw_fall(axes[0, column], axes[1, column], density, paths[name], ends[name])
        axes[0, column].set_title(title)
    axes[0, 0].set_ylabel("$t$, falling from $T$ to 0")
    axes[1, 0].set_ylabel("ends, $p(z_0)$")
    axes[0, 1].tick_params(labelleft=False)
    above, below = beside.subplots(2, 1)
    draw_board(above, *board)
    t = density[1][:-1]
    measured, theory = decided
    below.plot(t, np.ones(len(t)), color="C5", label="deterministic")
    below.plot(t, measured, color="C3", linewidth=3.5, alpha=0.6, label="stochastic")
    below.plot(t, theory, color="#222222", linewidth=1, linestyle="--", label="theory")
    below.set(title="Mode decided", xlabel="$t$", ylabel="share of paths", ylim=(0, 1.05), xlim=(t[0], 0))
    below.set(xticks=[t[0], t[0] // 2, 0])
    below.legend(loc=(0.02, 0.5), handlelength=1.4)


NOTE = Note(
    __file__,
    "Plinko",
    "Paths of a stochastic and of a deterministic sampler fall through the same densities, grey, into the same modes. "
    "The one's mode is open until late, the other's is set by where it starts; below, where they end (bars) and the "
    "data's density (line). Right: a board whose pins are tilted so "
    "that the balls end as the data do, which is what the decoder is; and the share of paths whose mode is decided.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
