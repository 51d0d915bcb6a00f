"""Modelling many modes: one network and one budget, used in one step, as a VAE, and in a thousand steps.

    python experiments/notes/many_modes.py

The derivation is beside this file, in many_modes.md.
"""

from bisect import bisect
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from note import Claim, Findings, Note

from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.arrays import stream
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.targets import V, X
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.sampling import Ddim, Heun, sample
from ddpm_jax.training.average import Ema
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

SCHEDULE = schedule.Linear().build()
ONE_STEP = schedule.Betas((1 - 1e-6,)).build()  # T = 1: z_1 is noise
RADIUS, STD = np.sqrt(2), 0.12
SHARES = np.array([1, 2, 1, 3, 3])
WITHIN = 3  # standard deviations of a mode that count as the mode: all but exp(-9/2) = 1.1% of it
FIRST_LOG_STD = -2.0  # a VAE that starts at the data's own spread stays there, its latent unused
WAVES = 4  # of every network's first layer
NORMAL = Normal(jnp.zeros(2), jnp.ones(2))


def ring(modes: int) -> Mixture:
    """Equal weights, evenly on a circle."""
    angle = 2 * np.pi * np.arange(modes) / modes
    return Mixture.of(np.full(modes, 1 / modes), RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1), STD)


def line(side: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights, means) of either coordinate of the grid, which are independent: standard deviation about 1."""
    return SHARES[:side] / SHARES[:side].sum(), 0.75 * (np.arange(side) - (side - 1) / 2)


def grid(side: int) -> Mixture:
    """Unequal weights, on a square lattice."""
    weights, places = line(side)
    means = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    return Mixture.of(np.outer(weights, weights).ravel(), means, STD)


class Shares(NamedTuple):
    """Where samples are."""

    covered: int
    """Modes with at least a tenth of their weight of the samples within WITHIN standard deviations."""
    variation: float
    """Total variation distance of their shares to the weights; samples outside every mode are a class of their own."""
    outside: float


def shares(data: Mixture, y: Any) -> Shares:
    """Which of the modes the samples y are at."""
    distance = np.linalg.norm(np.asarray(y)[:, None] - np.asarray(data.means), axis=2) / STD
    nearest = np.where(distance.min(1) < WITHIN, distance.argmin(1), len(data.weights))
    found = np.bincount(nearest, minlength=len(data.weights) + 1) / len(y)
    inside = -np.expm1(-(WITHIN**2) / 2)
    meant = np.append(inside * np.asarray(data.weights, np.float64), 1 - inside)
    covered = int(np.sum(found[:-1] >= 0.1 * meant[:-1]))
    return Shares(covered, 0.5 * float(np.abs(found - meant).sum()), float(found[-1]))


def floor(data: Mixture, count: int) -> tuple[float, float]:
    """Mean and standard deviation of that distance for `count` samples of the truth, each share taken as normal."""
    inside = -np.expm1(-(WITHIN**2) / 2)
    p = np.append(inside * np.asarray(data.weights, np.float64), 1 - inside)
    var = p * (1 - p) / count
    return 0.5 * float(np.sqrt(2 / np.pi * var).sum()), 0.5 * float(np.sqrt((1 - 2 / np.pi) * var.sum()))


class Vae(NamedTuple):
    """q(h | x) = N(mean(x), std(x)^2), p(x | h) = N(decoded(h), std^2) with one std, p(h) = N(0, I)."""

    encoder: Any
    decoder: Any
    log_std: Any

    def encode(self, x: Any) -> Normal:
        mean, log_std = jnp.split(self.encoder(x, 1), 2, axis=-1)
        return Normal(mean, jnp.exp(log_std))

    def decode(self, h: Any) -> Normal:
        return Normal(self.decoder(h, 1), jnp.exp(self.log_std))

    def elbo(self, key: Any, x: Any) -> Any:
        """In nats, of each x: with one draw of h."""
        q = self.encode(x)
        return jnp.sum(self.decode(q.sample(key)).log_prob(x) - q.kl(NORMAL), axis=-1)

    def log_prob(self, key: Any, x: Any, draws: int) -> Any:
        """At most log p(x) on average, and near it (Burda et al. 2016, arXiv 1509.00519)."""
        q = self.encode(x)
        h = jax.vmap(q.sample)(jax.random.split(key, draws))
        each = jax.vmap(lambda h: self.decode(h).log_prob(x) + NORMAL.log_prob(h) - q.log_prob(h))(h)
        return jax.nn.logsumexp(each.sum(-1), axis=0) - jnp.log(draws)


def train_vae(key: Any, data: Mixture, width: int, update: Any, batch: int, num_steps: int) -> Vae:
    """By its bound, with the same optimizer, batches and steps as the others."""
    nets = Mlp(width, waves=WAVES, out_multiplier=2), Mlp(width, waves=WAVES)
    start = (
        *(net.init(key_of, (2,)) for net, key_of in zip(nets, jax.random.split(key), strict=True)),
        jnp.float32(FIRST_LOG_STD),
    )

    def vae(params: Any) -> Vae:
        return Vae(nets[0].bind(params[0]), nets[1].bind(params[1]), params[2])

    def step(state: Any, key: Any) -> tuple[Any, None]:
        params, memory = state
        x = data.sample(stream(key, "data"), batch)
        slope = jax.grad(lambda p: -vae(p).elbo(stream(key, "latent"), x).mean())(params)
        updates, memory = update.update(slope, memory, params)
        return (optax.apply_updates(params, updates), memory), None

    train = jax.jit(partial(jax.lax.scan, step))
    return vae(train((start, update.init(start)), jax.random.split(key, num_steps))[0][0])


def modes_at(data: Mixture, t: int) -> np.ndarray:
    """The maxima of p(z_t), reached from a lattice and from the components' means."""
    p = data.diffused(SCHEDULE, t)
    axis = jnp.linspace(-2, 2, 11) * SCHEDULE.signal(t)
    return p.modes(jnp.concatenate([jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2), p.means]))


def modes_of_line(side: int, t: int) -> int:
    """How many maxima either coordinate's density has, by the sign of its slope in float64."""
    weights, means = line(side)
    signal, var = float(SCHEDULE.signal(t)), float(SCHEDULE.signal(t) ** 2 * STD**2 + SCHEDULE.noise_var[t])
    pull = signal * means - np.linspace(-2.001, 2, 20_000)[:, None]
    rises = (weights * pull * np.exp(-0.5 * pull**2 / var)).sum(1) > 0
    return int(np.sum(rises[:-1] & ~rises[1:]))


def centre_is_a_mode(data: Mixture, t: int) -> bool:
    """Whether p(z_t) has a maximum where the ring's centre is."""
    return bool(len(data.diffused(SCHEDULE, t).modes(jnp.zeros((1, 2)))))


class Trained(NamedTuple):
    """What three ways of using one budget make of one mixture."""

    samples: dict[str, np.ndarray]
    vae_bound: np.ndarray
    """Minus the VAE's bound, less minus log p(x), of each x: nats."""
    vae_excess: np.ndarray
    diffusion_excess: np.ndarray
    """Likewise of the density: the means are KL(truth || model), for the VAE at most."""


def train(data: Mixture, width: int, batch: int, num_steps: int, count: int, fresh: int) -> Trained:
    """One step, VAE and diffusion, each with the same number of parameters, steps and examples."""
    key = jax.random.key(0)
    update = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    net = Mlp(width, waves=WAVES)

    def fitted(s: Chain, target: Any) -> Any:
        recipe = Recipe(net, s, target=target, update=update, ema=Ema(0.99, warmup=False))
        return net.bind(fit(key, recipe, lambda key: data.sample(key, batch), num_steps)[0].ema_params[0])

    one, many = fitted(ONE_STEP, X()), fitted(SCHEDULE, V())
    vae = train_vae(key, data, half(width), update, batch, num_steps)
    h = jax.random.normal(stream(key, "latent"), (count, 2))
    samples = {
        "truth": data.sample(stream(key, "truth"), count),
        "one step": sample(key, Denoiser(one, ONE_STEP, target=X()), Ddim(num_steps=1), (count, 2)),
        "VAE": vae.decode(h).sample(stream(key, "decoder")),
        "diffusion": sample(key, Denoiser(many, SCHEDULE, target=V()), Heun(num_steps=30), (count, 2)),
    }
    x, first = data.sample(stream(key, "fresh"), fresh), data.diffused(SCHEDULE, 1)
    z = first.sample(stream(key, "noised"), fresh)  # the flow's density is that of z_1 / signal_1
    flow = log_likelihood(
        key, Denoiser(many, SCHEDULE, target=V()), z / SCHEDULE.signal(1), trace="exact", bins=None, tolerance=0.001
    )
    truth_of_z = first.log_prob(z) + 2 * jnp.log(SCHEDULE.signal(1))
    return Trained(
        {name: np.asarray(y) for name, y in samples.items()},
        np.asarray(data.log_prob(x) - jax.jit(vae.elbo)(stream(key, "bound"), x)),
        np.asarray(data.log_prob(x) - jax.jit(vae.log_prob, static_argnums=2)(stream(key, "importance"), x, 200)),
        np.asarray(truth_of_z - flow.log_prob),
    )


def size(net: Mlp) -> int:
    """How many parameters it has, for points."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: net.init(jax.random.key(0), (2,)))))


def half(width: int) -> int:
    """The largest width at which encoder and decoder together have at most the parameters of one network."""

    def both(w: int) -> int:
        return size(Mlp(w, waves=WAVES, out_multiplier=2)) + size(Mlp(w, waves=WAVES))

    return bisect(range(width), size(Mlp(width, waves=WAVES)), lo=2, key=both) - 1


def errors(values: np.ndarray) -> float:
    """The standard error of their mean."""
    return float(values.std() / np.sqrt(len(values)))


def counts(round_: Mixture, square: Mixture, side: int) -> tuple[list[Claim], dict[str, Any]]:
    """How many modes p(z_t) has, at every t looked at, and where the circle's first comes apart."""
    t = np.unique(np.concatenate([np.arange(0, 300, 30), np.arange(300, SCHEDULE.num_steps + 1, 100)]))
    of_round, of_square = ([len(modes_at(data, int(u))) for u in t] for data in (round_, square))
    products = [modes_of_line(side, int(u)) ** 2 for u in t]
    split = bisect(range(SCHEDULE.num_steps + 1), 0, key=partial(centre_is_a_mode, round_))
    signal, noise_var = (np.asarray(table, np.float64) for table in (SCHEDULE.signals, SCHEDULE.noise_var))
    bends = signal**2 * RADIUS**2 / (2 * (signal**2 * STD**2 + noise_var)) > 1
    claims = [
        Claim("modes of p(z_T), both data sets", of_round[-1] + of_square[-1], 2, 0, "z_T is noise: one mode each"),
        Claim(
            "modes of p(z_0), both data sets",
            of_round[0] + of_square[0],
            len(round_.weights) + len(square.weights),
            0,
            "as many as components, far apart",
        ),
        Claim(
            "first t at which the ring's centre is a mode",
            split,
            int(bends.sum()),
            1,
            "signal² r² = 2 var; tables are float32",
        ),
        Claim(
            "modes of the grid less the square of a line's, largest over t",
            max(abs(a - b) for a, b in zip(of_square, products, strict=True)),
            0,
            0,
            "its coordinates are independent",
        ),
    ]
    return claims, {"t": t, "numbers": {"ring": of_round, "grid": of_square}, "split": int(bends.sum())}


def measure(
    modes: int = 8,
    side: int = 5,
    width: int = 96,
    batch: int = 256,
    num_steps: int = 1400,
    count: int = 10_000,
    fresh: int = 200,
) -> Findings:
    """Both mixtures, by three models and in closed form."""
    data = {"ring": ring(modes), "grid": grid(side)}
    made = {name: train(each, width, batch, num_steps, count, fresh) for name, each in data.items()}
    claims, shown = counts(data["ring"], data["grid"], side)
    found = {name: {k: shares(data[name], y) for k, y in each.samples.items()} for name, each in made.items()}
    total = sum(len(each.weights) for each in data.values())
    covered = sum(each["diffusion"].covered for each in found.values())
    claims += [Claim("modes that the diffusion model covers, both", covered, total, 0, "each has a tenth of its share")]
    for name, each in data.items():
        claims += model_claims(name, each, made[name], found[name])
    return Findings(claims, {"made": made, "found": found, **shown})


def model_claims(name: str, data: Mixture, trained: Trained, found: dict[str, Shares]) -> list[Claim]:
    """What the three models make of one mixture."""
    centre = data.moments()
    off = np.sqrt(np.mean(((trained.samples["one step"] - centre.mean) / centre.std) ** 2))
    mean, deviation = floor(data, len(trained.samples["truth"]))
    kl, vae_kl = trained.diffusion_excess, trained.vae_excess
    return [
        Claim(f"{name}: one step's outputs from E[x], in standard deviations", off, 0, 0.1, "1% of the variance"),
        Claim(
            f"{name}: distance of the truth's own samples to the weights",
            found["truth"].variation,
            mean,
            4 * deviation,
            "chance alone; 4 standard deviations",
        ),
        Claim(
            f"{name}: that of the diffusion model's",
            found["diffusion"].variation,
            found["VAE"].variation,
            0,
            "the VAE's",
            "<",
        ),
        Claim(
            f"{name}: the VAE's bound over the truth's −log p, nats",
            trained.vae_bound.mean(),
            vae_kl.mean(),
            4 * errors(trained.vae_bound - vae_kl),
            "its −log p, which lies below",
            ">",
        ),
        Claim(f"{name}: KL(truth || diffusion), nats", kl.mean(), 0, 4 * errors(kl), "nothing beats the truth", ">"),
        Claim(f"{name}: the same", kl.mean(), vae_kl.mean(), 0, "the VAE's, by 200 draws of its latent", "<"),
    ]


def draw(figure: Any, made: dict, found: dict, t: np.ndarray, numbers: dict, split: int) -> None:
    """What each model makes of both mixtures; the number of modes against t."""
    figure.set_size_inches(7, 6.3)
    above, below = figure.subfigures(2, 1, height_ratios=(2.3, 1))
    rows = above.subplots(2, 4, sharex=True, sharey=True)
    for row, (name, trained) in zip(rows, made.items(), strict=True):
        for axes, (model, y), color in zip(row, trained.samples.items(), ("C6", "C1", "C3", "C0"), strict=True):
            axes.plot(*y[:3000].T, ".", ms=4 if model == "one step" else 1.1, mew=0, color=color, alpha=0.7)
            axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            covered, _, outside = found[name][model]
            axes.set_title(f"{covered} modes, {outside:.0%} outside", fontsize=8.5, fontweight="normal", pad=3)
            if name == "ring":
                axes.text(0.5, 1.2, model, fontsize=10, fontweight="bold", ha="center", transform=axes.transAxes)
            else:
                axes.set_xlabel("$x_1$", labelpad=1)
        row[0].set_ylabel(f"{name}: $x_2$")
    above.supxlabel(f"outside: more than {WITHIN} standard deviations from every mode", fontsize=8.5)
    for axes, (name, number), color in zip(below.subplots(1, 2), numbers.items(), ("C0", "C2"), strict=True):
        axes.plot(t, number, ".-", color=color, drawstyle="steps-mid")
        axes.set(
            title=f"Modes of $p(z_t)$, {name}", xlabel="$t$", ylabel="modes, counted", xlim=(0, 500), ylim=(0, None)
        )
        axes.set(yticks=[1, 5, 10, 15, 20, 25] if max(number) > 10 else [1, 2, 4, 6, 8])
        if name == "ring":
            axes.axvline(split, color="C6", ls="--", lw=1)
            axes.text(split + 8, 5, f"theory: the centre\nis a mode from\n$t$ = {split} on", fontsize=8.5, va="center")


NOTE = Note(
    __file__,
    "Modelling many modes",
    "Samples of the truth and of three models with the same number of parameters, training steps and examples: "
    "one step from noise to data by squared error, a variational autoencoder (VAE), diffusion; how many modes "
    "they cover, and the share of samples outside all modes. Below, how the modes of the exact p(z_t) come apart "
    "as t falls.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
