"""Diffusion as spectral autoregression: noise drowns images from their fine detail up, and sampling brings them back
from coarse to fine (after Dieleman 2024, https://sander.ai/2024/09/02/spectral-autoregression.html).

    python experiments/notes/spectral.py

Other images than the packaged digits: measure(source=Folder("~/photos", size=32)), or any square ones.  The derivation
is beside this file, in spectral.md.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from note import DASHES, Claim, Findings, Note, photograph, show
from spectra import (
    PHOTOGRAPHS,
    SCHEDULE,
    SNR,
    common_power,
    crossing,
    gaussian_images,
    half_way,
    power_at,
    power_of,
    spread,
    wiener,
)

from ddpm_jax.data import Digits, Source
from ddpm_jax.data.images import to_unit
from ddpm_jax.diffusion import forward
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.targets import Target, V, X
from ddpm_jax.metrics.spectrum import rings
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.sampling import DpmSolver, LogSnr, Path, sample_path
from ddpm_jax.training.average import PowerEma
from ddpm_jax.training.fit import fit
from ddpm_jax.training.step import Recipe

OCTAVES = (1, 2, 4, 8, 16, 32)


def drowned(images: Any, power: np.ndarray, num_times: int) -> dict[str, np.ndarray]:
    """Spectra of the images at several t, and the frequency above which noise is stronger, with its standard error."""
    levels = np.geomspace(power[1:].max(), power[-1], num_times + 2)[1:-1]  # of noise, each within the spectrum
    times = 1 + np.abs(np.log(SNR[1:, None] * levels)).argmin(0)
    coefficients = np.bincount(rings(images.shape[1]))[1 : len(power)] * images.shape[-1]
    clean = np.asarray(power_of(images), np.float64)
    rows = []
    for t in map(int, times):
        noisy = np.asarray(power_at(jax.random.key(t), images, t), np.float64)
        error = noisy - (SCHEDULE.alpha_bar[t] * clean + SCHEDULE.noise_var[t])
        found = noisy.mean(0)[1:] / SCHEDULE.noise_var[t] - 1  # snr_t P(f), and 1 where noise takes over
        theory = crossing(SNR[t] * power[1:])
        segment = min(int(theory), len(power) - 2) - 1
        slope = np.log(power[segment + 1] / power[segment + 2]) / np.log((segment + 2) / (segment + 1))
        # Of a power that is half noise, so half its variance normal: |F|^2 is exponential, and F(-f) repeats F(f).
        at_crossing = np.sqrt(8 / (len(images) * coefficients[segment])) / slope
        off = np.abs(error.mean(0)) / (error.std(0) / np.sqrt(len(images)))
        rows.append((t, SNR[t], crossing(found), theory, at_crossing, off.max(), noisy.mean(0) / SCHEDULE.alpha_bar[t]))
    names = ("t", "snr", "found", "theory", "error", "off", "power")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def noise_takes_over(x: Any, count: int, num_times: int) -> tuple[list[Claim], dict[str, Any]]:
    """Images at several t: their power, where noise takes over, and how that frequency moves."""
    real = drowned(x, np.asarray(power_of(x), np.float64).mean(0), num_times)
    law = 30 * np.maximum(np.arange(17), 1) ** -2.0
    drawn = drowned(gaussian_images(jax.random.key(3), law, count), law, num_times)
    log_snr = np.log(drawn["snr"]) - np.log(drawn["snr"]).mean()
    slope = log_snr @ np.log(drawn["found"]) / np.sum(log_snr**2)
    slope_error = np.sqrt(np.sum((log_snr * drawn["error"]) ** 2)) / np.sum(log_snr**2)
    off = np.abs(np.log(real["found"] / real["theory"])) / real["error"]
    claims = [
        Claim("power of z_t − (ᾱ_t P(f) + 1 − ᾱ_t), largest", real["off"].max(), 0, 5, "in standard errors"),
        Claim("frequency where noise takes over: error", off.max(), 0, 5, "P(f) snr_t = 1; in standard errors"),
        Claim(
            "its growth, d log f / d log snr, if P = C f⁻²", slope, 1 / 2, 5 * slope_error, "f = (C snr)^(1/2); 5 s.e."
        ),
    ]
    photographs = drowned(gaussian_images(jax.random.key(4), PHOTOGRAPHS, count), PHOTOGRAPHS, num_times)
    return claims, {"photographs": photographs}


def filtered_photograph(size: int = 96, draws: int = 64) -> tuple[list[Claim], dict[str, Any]]:
    """z_t of one photograph, and the x that the filter for its own spectrum predicts, where noise passes octaves."""
    x = photograph(size)[None]
    mean = x.mean((0, 1, 2))
    power = np.asarray(power_of(x - mean), np.float64)[0]
    predict, shown, worst = jax.jit(partial(wiener, spread(power))), [], 0.0
    for f in OCTAVES:
        t = int(1 + np.abs(np.log(SNR[1:] * power[f])).argmin())
        eps = jax.random.normal(jax.random.fold_in(jax.random.key(9), f), (draws, *x.shape[1:]))
        z_t = forward.diffuse(SCHEDULE, jnp.broadcast_to(x - mean, eps.shape), t, eps)
        predicted = predict(z_t, jnp.full(draws, t))
        each = np.asarray(power_of(predicted), np.float64)[:, 1:]
        gain = SNR[t] * power[1:] / (1 + SNR[t] * power[1:])
        off = np.abs(each.mean(0) - gain * power[1:]) / (each.std(0) / np.sqrt(draws))
        worst = max(worst, float(off.max()))
        shown.append((t, f, np.asarray(z_t[0] + SCHEDULE.signal(t) * mean), np.asarray(predicted[0] + mean)))
    claim = Claim("power of a photograph's predicted x − g_t P(f), largest", worst, 0, 5, "in standard errors")
    return [claim], {"shown": shown}


def sampled(key: Any, predict: Any, target: Target, shape: tuple[int, ...], steps: int) -> tuple[Path, np.ndarray]:
    """The x predicted along a sampler's way, and its power in each ring, [steps, rings]."""
    sampler = DpmSolver(num_steps=steps, grid=LogSnr())
    path = sample_path(key, Denoiser(predict, SCHEDULE, target=target), sampler, shape, steps, of="x")
    about_mean = path.frames - path.frames.mean(1, keepdims=True)
    return path, np.array([power_of(frame).mean(0) for frame in about_mean], np.float64)


def sampler_brings_back(count: int, steps: int) -> tuple[list[Claim], dict[str, Any]]:
    """The exact denoiser of normal images with the photographs' spectrum, in a sampler."""
    predict, shape = Partial(wiener, spread(PHOTOGRAPHS)), (count, 32, 32, 1)
    halves = []
    for num_steps in (steps // 2, steps):
        path, power = sampled(jax.random.key(5), predict, X(), shape, num_steps)
        last = SNR[1] * PHOTOGRAPHS / (1 + SNR[1] * PHOTOGRAPHS)  # the gain at the end, nearly 1
        halves.append(half_way(power, np.asarray(path.t)) + np.log(PHOTOGRAPHS * (2 - last) / last))
    each = np.asarray(power_of(path.x))
    off = np.abs(each.mean(0) / PHOTOGRAPHS - last) / (each.std(0) / PHOTOGRAPHS / np.sqrt(count))
    change = np.abs(halves[1] - halves[0]).max()
    out_of_order = int(np.sum(np.diff(half_way(power, np.asarray(path.t))) <= 0))
    claims = [
        Claim("sampled images' power − P(f), largest", off.max(), 0, 5, "exact denoiser; in standard errors"),
        Claim(
            "log snr P(f) where x predicted has half of f",
            np.abs(halves[1]).max(),
            0,
            change,
            "± change from half the steps",
        ),
        Claim(
            "frequencies that get there before a lower one",
            out_of_order,
            0,
            0,
            "P(f) falls",
        ),
    ]
    return claims, {"gain": power / power[-1], "times": np.asarray(path.t)}


def network_too(
    x: Any, width: int, training_steps: int, count: int, sampler_steps: int
) -> tuple[list[Claim], dict[str, Any]]:
    """A small network trained on four fifths of the images: its error on the rest, and what it does in the sampler."""
    held, data = x[::5], jnp.asarray(np.delete(x, slice(None, None, 5), axis=0))
    net = Mlp(width=width, depth=2)
    recipe = Recipe(net, SCHEDULE, target=V(), ema=PowerEma(), update=optax.adam(2e-3))

    def batch(key: Any) -> jax.Array:
        return data[jax.random.randint(key, (256,), 0, len(data))]

    state, _ = fit(jax.random.key(6), recipe, batch, training_steps)
    predict = net.bind(state.ema_params[0])

    @jax.jit
    def share_of_filter(t: Any) -> Any:
        """The network's squared error at each f, over that of the best filter."""
        z = forward.diffuse(SCHEDULE, held, t, jax.random.normal(jax.random.key(8), held.shape))
        left = power_of(held - V().decode(SCHEDULE, predict(z, t), z, t).x).mean(0)
        return left * (1 / power_of(held).mean(0) + SCHEDULE.snr(t))

    half_drowned = 1 + np.abs(np.log(SNR[1:, None] * np.asarray(power_of(held)).mean(0)[1:])).argmin(0)
    error = max(share_of_filter(t)[1:].max() for t in half_drowned)
    path, each = shares(jax.random.key(7), predict, V(), (count, *x.shape[1:]), sampler_steps)
    share = each.mean(1)
    half = half_way(share, np.asarray(path.t))[1:]
    ahead = each[:-1, :, -1] - each[:-1, :, 1]  # of the finest f, over the coarsest
    claims = [
        Claim(
            "network's squared error / the best filter's, largest",
            float(error),
            1,
            0,
            "no filter beats E[x | z_t]",
            "<",
        ),
        Claim("its log snr at half, finest f − coarsest", half[-1] - half[0], 0, 0, "coarse comes first", ">"),
        Claim(
            "its share of the finest f − of the coarsest, largest over t",
            (ahead.mean(1) / (ahead.std(1) / np.sqrt(count))).max(),
            5,
            0,
            "P(f) falls; in standard errors",
            "<",
        ),
    ]
    return claims, {"share": share, "share_times": np.asarray(path.t)}


def shares(key: Any, predict: Any, target: Target, shape: tuple[int, ...], steps: int) -> tuple[Path, np.ndarray]:
    """The x predicted along a stochastic sampler's way, and what it shares with the way's end of the end's mean power.

    [steps, images, rings].  The end is a draw from p(x | z_t), so this is the power of E[x | z_t] on average; errors
    of the network, which are white and unrelated to the end, do not count as they would in the prediction's power.
    """
    sampler = DpmSolver(num_steps=steps, grid=LogSnr(), sde=True)
    path = sample_path(key, Denoiser(predict, SCHEDULE, target=target), sampler, shape, steps, of="x")
    about_mean = path.frames - path.frames.mean(1, keepdims=True)
    common = np.array([common_power(frame, about_mean[-1]) for frame in about_mean], np.float64)
    return path, common / common[-1].mean(0)


def measure(
    source: Source = Digits(),
    num_images: int = 2000,
    num_times: int = 5,
    count: int = 512,
    sampler_steps: int = 100,
    width: int = 256,
    training_steps: int = 1500,
) -> Findings:
    """Square images of `source`, normal images and a trained network.  Powers are about the mean image.

    The network is a small one for small images: from 16 x 16 pixels on its claims need a larger one.
    """
    pixels = np.stack([source[i]["image"] for i in range(min(num_images, len(source)))])
    x = np.asarray(to_unit(pixels))
    x = x - x.mean(0)
    parts = (
        noise_takes_over(x, count, num_times),
        filtered_photograph(),
        sampler_brings_back(count, sampler_steps),
        network_too(x, width, training_steps, count, sampler_steps),
    )
    claims = [claim for found, _ in parts for claim in found]
    return Findings(claims, {key: value for _, shown in parts for key, value in shown.items()})


def draw(
    figure: Any,
    shown: list,
    photographs: dict,
    gain: np.ndarray,
    times: np.ndarray,
    share: np.ndarray,
    share_times: np.ndarray,
) -> None:
    """A photograph under noise and its predicted x; spectra under noise; when each frequency appears, in theory and in
    a network."""
    figure.set_size_inches(7, 6)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    draw_photograph(above, shown)
    left, middle, right = below.subplots(1, 3, width_ratios=(1, 1.15, 1))
    draw_spectra(left, photographs)
    draw_gain(below, middle, gain, times)
    chosen = np.unique(np.rint(np.geomspace(1, share.shape[1] - 1, 4)).astype(int))
    for ring, dashes in zip(chosen, DASHES, strict=False):
        right.plot(share_times, share[:, ring], dashes, label=f"$f$ = {ring}")
    right.axhline(0.5, color="C6", linewidth=1)
    right.text(1000, 0.51, "half", color="C6", fontsize=8.5)
    right.set(
        title="So does a network", xlabel="$t$", ylabel="share in predicted $x$", xlim=(1000, 0), ylim=(-0.02, 1.05)
    )
    right.legend(loc="upper left", handlelength=1.6, bbox_to_anchor=(0, 0.98))


def draw_photograph(figure: Any, shown: list) -> None:
    """z_t, and below it the x predicted from it."""
    rows = figure.subplots(2, len(shown))
    for (noisy, predicted), (t, f, z_t, x) in zip(rows.T, shown, strict=True):
        show(noisy, z_t)
        show(predicted, x)
        noisy.set_title(f"$t$ = {t}", fontweight="normal", fontsize=9.5)
        predicted.set_xlabel(f"$f_t$ = {f}")
    rows[0, 0].set_ylabel("$z_t$")
    rows[1, 0].set_ylabel("predicted $x$")


def draw_spectra(axes: Any, photographs: dict) -> None:
    """Power under noise, measured and in theory, and where noise passes the images' spectrum."""
    f = np.arange(1, len(PHOTOGRAPHS))
    axes.loglog(f, PHOTOGRAPHS[1:], color="black", linewidth=2, label="$t$ = 0")
    columns = (photographs[name] for name in ("t", "snr", "power", "theory"))
    for i, (t, snr, power, cross) in enumerate(zip(*columns, strict=True)):
        axes.loglog(f, PHOTOGRAPHS[1:] + 1 / snr, color=f"C{i}")
        far = PHOTOGRAPHS[1:] < 2 / snr  # from the other lines
        axes.loglog(f[far], power[1:][far], "os^vP"[i % 5], markersize=3.5, color=f"C{i}", label=f"$t$ = {t}")
        axes.plot(cross, 1 / snr, "D", markersize=6, markerfacecolor="white", markeredgecolor=f"C{i}", zorder=3)
    axes.plot([], [], "D", color="C6", markerfacecolor="white", label="$f_t$")
    axes.set(title="Noise takes over", xlabel="frequency $f$", ylabel=r"power of $z_t$, over $\bar{\alpha}_t$")
    axes.set(xticks=[1, 2, 4, 8, 16], xticklabels=[1, 2, 4, 8, 16])
    axes.minorticks_off()
    axes.legend(fontsize=8, handlelength=1, borderaxespad=0, labelspacing=0.2)


def draw_gain(figure: Any, axes: Any, gain: np.ndarray, times: np.ndarray) -> None:
    """The share of each frequency that the predicted x has along a sampler's way."""
    f = np.arange(1, len(PHOTOGRAPHS))
    mesh = axes.pcolormesh(times, f, np.clip(gain[:, 1:].T, 0, 1), vmin=0, cmap="viridis", shading="nearest")
    axes.plot(np.interp(np.log(PHOTOGRAPHS[1:]), -np.log(SNR[1:]), np.arange(1, len(SNR))), f, "w", linewidth=2)
    axes.set(title="Sampling brings it back", xlabel="$t$", ylabel="frequency $f$, line: $f_t$", xlim=(1000, 0))
    axes.set(yscale="log", ylim=(0.9, 17), yticks=[1, 2, 4, 8, 16], yticklabels=[1, 2, 4, 8, 16])
    axes.grid(False)
    axes.minorticks_off()
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30, ticks=[0, 1])
    bar.set_label("share in predicted $x$", labelpad=-6)
    bar.ax.tick_params(pad=1)


NOTE = Note(
    __file__,
    "Diffusion as spectral autoregression",
    "Above: a photograph's z_t at falling t, and the x that the best filter predicts from it, from coarse to fine; "
    "noise is stronger than the photograph at frequencies above f_t. Below: noise (levels) passes the spectrum of "
    "small photographs at the diamonds, other marks measured; the share of each frequency in the predicted x while "
    "their like are sampled, half of it at the white line; the same in a network trained on digits of 8 x 8 pixels.",
    measure,
    draw,
)

if __name__ == "__main__":
    NOTE.main()
