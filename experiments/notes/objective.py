"""The objective: the variational bound is a weighted sum of squared errors, whatever it is that the network predicts.

    python experiments/notes/objective.py

The derivation is beside this file, in objective.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from note import DASHES, Claim, Findings, Note

from ddpm_jax.diffusion import bound, forward, objective, targets, weighting
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Chain, Linear
from ddpm_jax.diffusion.timesteps import StratifiedTimesteps
from ddpm_jax.diffusion.variance import FixedSmall
from ddpm_jax.nets.mlp import Mlp

DATA = Mixture.of([0.3, 0.5, 0.2], [[-0.8, 0.2], [0.1, -0.5], [0.7, 0.6]], [0.1, 0.2, 0.05])
FORMS = {
    "x": targets.X(),
    "ε": targets.Eps(),
    "the mean of z_{t−1}": targets.Mean(),
    "v": targets.V(),
    "the score": targets.Score(),
}


@jax.jit
def forms_of(s: Chain, predict: Any, x: jax.Array, t: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
    """Each example's term as a KL divergence, and as weight_t |target − what the network says|², for each target."""
    z_t, forms = (
        forward.diffuse(s, x, t, eps),
        {"KL": bound.term(Denoiser(predict, s, targets.X()), x, t, eps, bins=None).nats},
    )
    for name, target in FORMS.items():
        said = targets.convert(s, predict(z_t, t), z_t, t, targets.X(), target)
        error = jnp.sum((target.encode(s, x, eps, t) - said) ** 2, axis=1)
        forms[name] = weighting.weights(weighting.Vlb(), s, t, target) * error
    return forms


def weights_of_eps(betas: np.ndarray) -> np.ndarray:
    """beta_t² / (2 var_t (1 − beta_t) (1 − alpha_bar_t)) for t = 2..T in float64 (Ho et al. 2020, equation 12)."""
    alpha_bar = np.cumprod(1 - betas)
    var = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    return betas[1:] ** 2 / (2 * var * (1 - betas[1:]) * (1 - alpha_bar[1:]))


def measure(num_steps: int = 200, num_examples: int = 4096, each: int = 64) -> Findings:
    """Every term of the bound of a mixture's data, for the best network and for one that has learned nothing."""
    spec = Linear(num_steps)
    s, net = spec.build(), Mlp(width=32, depth=1)
    best, untrained = DATA.denoiser(s).predict, net.bind(net.init(jax.random.key(0), (2,)))
    terms = {name: mean_terms(s, predict, each) for name, predict in {"best": best, "untrained": untrained}.items()}
    weights = relative_weights(s)
    claims = [
        *equal_forms(terms),
        *whole_bound(s, best, num_examples),
        *published_weights(weights["the bound"], spec.betas()),
    ]
    return Findings(claims, {"terms": terms, "weights": weights})


def mean_terms(s: Chain, predict: Any, each: int) -> dict[str, np.ndarray]:
    """`forms_of` for t = 2..T, each a mean over `each` examples, [T - 1]."""
    t = jnp.repeat(jnp.arange(2, s.num_steps + 1), each)
    x = DATA.sample(jax.random.key(1), len(t))
    forms = forms_of(s, predict, x, t, jax.random.normal(jax.random.key(2), x.shape))
    return {name: np.asarray(nats, np.float64).reshape(-1, each).mean(1) for name, nats in forms.items()}


def equal_forms(terms: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """The KL divergence and the squared errors, term by term."""

    def apart(name: str) -> float:
        return max(float(np.max(np.abs(means[name] / means["KL"] - 1))) for means in terms.values())

    # At t = T the two means are some 1e-3 apart, so that float32 leaves their distance four digits.
    return [Claim(f"KL against the error of {name}", apart(name), 0, 1e-3, "equal; float32") for name in FORMS]


def whole_bound(s: Chain, best: Any, num_examples: int) -> list[Claim]:
    """The bound against the likelihood, and against its estimate from one t for each example."""
    x = DATA.sample(jax.random.key(3), num_examples)
    whole = bound.bound(jax.random.key(4), Denoiser(best, s, targets.X()), x, bins=None)
    gap = np.asarray(whole.total + DATA.log_prob(x), np.float64)
    bits = np.asarray(whole.bits_per_dim, np.float64)

    many = 64 * num_examples
    t, _ = StratifiedTimesteps().draw(jax.random.key(5), (), s, many)
    draws = objective.Draws(t, jax.random.normal(jax.random.key(6), (many, 2)))
    decoder = Denoiser(best, s, targets.X(), FixedSmall())
    one = jax.jit(objective.FullBound(bins=None))(decoder, DATA.sample(jax.random.key(7), many), draws)
    one = np.asarray(one, np.float64) + float(np.mean(bound.bits_per_dim(whole.prior, x)))
    # The t are spread evenly, so that only x and eps are random: the error is that within each t.
    within = np.sqrt(sum(np.var(one[t == step]) * np.sum(t == step) for step in np.unique(t))) / many
    tolerance = 4 * float(np.hypot(within, error_of(bits)))
    return [
        Claim("bound − (−log p(x)), nats, of the best network", gap.mean(), 0, 4 * error_of(gap), "≥ 0", ">"),
        Claim("bits/dim from one t for each example", one.mean(), bits.mean(), tolerance, "all t; 4 standard errors"),
    ]


def relative_weights(s: Chain) -> dict[str, np.ndarray]:
    """What losses put on the squared error of ε at t = 2..T."""
    rules = {"the bound": weighting.Vlb(), "$L_{simple}$": weighting.Simple()}
    rules |= {"min-SNR": weighting.MinSnr(), "P2": weighting.P2()}
    steps = jnp.arange(2, s.num_steps + 1)
    return {name: np.asarray(weighting.weights(rule, s, steps, targets.Eps())) for name, rule in rules.items()}


def published_weights(ours: np.ndarray, betas: np.ndarray) -> list[Claim]:
    """The bound's weights against equation 12 of Ho et al. (2020) in float64."""
    exact, early = weights_of_eps(betas), len(betas) // 10 - 1
    share, theory = (float(weights[:early].sum() / weights.sum()) for weights in (ours, exact))
    off = float(np.max(np.abs(ours / exact - 1)))
    return [
        Claim("the bound's weights on the error of ε, relative", off, 0, 1e-4, "Ho et al. 2020, equation 12"),
        Claim("share of them on t ≤ T/10", share, theory, 1e-4, "the same; L_simple: 0.1"),
    ]


def error_of(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std() / np.sqrt(len(values)))


def draw(figure: Any, terms: dict, weights: dict) -> None:
    """The terms of the bound, written in four ways; where losses put their weight."""
    left, right = figure.subplots(1, 2)
    t = np.arange(2, len(terms["best"]["KL"]) + 2)
    for (network, means), color, dashes in zip(terms.items(), ("C0", "C1"), DASHES, strict=False):
        left.loglog(t, means["KL"], dashes, color=color, linewidth=3, alpha=0.35, label=f"KL, {network} network")
    marked = distinct(t, 18)
    for i, (name, marker) in enumerate(zip(("x", "ε", "the mean of z_{t−1}"), "o^s", strict=True)):
        chosen, written = marked[i::3] - t[0], name.replace("the mean of z_{t−1}", "$z_{t-1}$'s mean")
        style: Any = {"color": f"C{i + 2}", "markersize": 4.5, "label": f"best, as error of {written}"}
        left.plot(t[chosen], terms["best"][name][chosen], marker, **style)
    left.set(title="Each term, in four ways", xlabel="$t$", ylabel="nats")
    left.legend(loc="lower left")
    for (name, values), dashes in zip(weights.items(), DASHES, strict=True):
        right.loglog(np.arange(2, len(values) + 2), values / values.mean(), dashes, label=name)
    right.set(title="Weight on the squared error of ε", xlabel="$t$", ylabel="relative to its mean over $t$")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set(xticks=[2, 5, 10, 20, 50, 100, 200], xticklabels=[2, 5, 10, 20, 50, 100, 200], xlim=(1.8, 1.1 * t[-1]))
        axes.minorticks_off()


def distinct(t: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the t, far enough apart on a logarithmic axis for a marker each."""
    step, chosen = (t[-1] / t[0]) ** (1 / (count - 1)), [t[0]]
    for candidate in t:
        if candidate >= chosen[-1] * step:
            chosen.append(candidate)
    return np.array(chosen)


NOTE = Note(
    __file__,
    "The objective",
    "Every term of the bound is a KL divergence between normals, and the same number is a squared error of x, of the "
    "noise or of the mean of the step. The simple loss takes weight from small t, where only fine detail is learned.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
