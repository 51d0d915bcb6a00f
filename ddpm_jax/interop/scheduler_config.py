"""The configs of diffusers' schedulers: schedule, target, variance, clipping and timesteps of a model.

A schedule is written in its own form if diffusers has that form, or else as the list of its betas in float64; diffusers
itself computes in float32.

    linear, scaled_linear    Linear, ScaledLinear         trained_betas           Betas
    squaredcos_cap_v2        Cosine                       sigmoid (of the betas)  Betas
    epsilon, sample, v_prediction                         Eps, X, V
    fixed_small, fixed_large, learned_range               FixedSmall, FixedLarge, LearnedRange
    clip_sample, thresholding                             Clip, DynamicThreshold, or NoClipping
    leading, linspace, trailing                           the grids Leading, Linspace, Uniform

rescale_betas_zero_snr (Lin et al. 2024, arXiv 2305.08891, algorithm 1) makes the last beta 1, so that z_T is
independent of x: it is `ZeroTerminal` of the schedule that the other fields give.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.diffusion.clipping import Clip, Clipping, DynamicThreshold, NoClipping
from ddpm_jax.diffusion.grids import Grid, Leading, Linspace, Uniform
from ddpm_jax.diffusion.schedule import PUBLISHED_STEPS, Betas, Cosine, Linear, ScaledLinear, Schedule, ZeroTerminal
from ddpm_jax.diffusion.targets import Eps, Target, V, X, check_target
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance
from ddpm_jax.errors import require
from ddpm_jax.interop.fields import Fields
from ddpm_jax.sampling import Ancestral, Ddim

__all__ = ["DEFAULTS", "read_config", "require_chain", "write_config"]

# The value that diffusers takes for each field that a config leaves out.
COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
DEFAULTS = {
    "DDPMScheduler": {**COMMON, "variance_type": "fixed_small"},
    "DDIMScheduler": {**COMMON, "set_alpha_to_one": True},
}
# Fields of the first versions: the target, the framework, and one without effect.  Their `timesteps` is
# num_train_timesteps.
OLD: dict[str, Any] = {"predict_epsilon": True, "tensor_format": "pt", "timestep_values": None}
# Fields of other schedulers of diffusers, which `from_config` copies into a config without effect.
OF_OTHERS = frozenset((
    "set_alpha_to_one", "variance_type", "skip_prk_steps", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "solver_order", "solver_type",
    "solver_p", "algorithm_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
    "lambda_min_clipped", "interpolation_type", "timestep_type", "sigma_min", "sigma_max", "sigma_data", "rho",
    "predict_x0", "disable_corrector", "predictor_order", "corrector_order", "original_inference_steps",
    "timestep_scaling", "invert_sigmas", "use_dynamic_shifting", "time_shift_type", "sigma_schedule",
))  # fmt: skip
TARGETS: dict[str, Target] = {"epsilon": Eps(), "sample": X(), "v_prediction": V()}
# The two forms in _log compute the same.
VARIANCES: dict[str, Variance] = {
    "fixed_small": FixedSmall(),
    "fixed_small_log": FixedSmall(),
    "fixed_large": FixedLarge(),
    "fixed_large_log": FixedLarge(),
    "learned_range": LearnedRange(),
}
GRIDS: dict[str, type[Grid]] = {"leading": Leading, "linspace": Linspace, "trailing": Uniform}


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schedule, target, variance, clip and sampler in the config of a scheduler.

    Args:
        config: the config.
        where: the name of its file, for messages.

    Returns:
        The parts, by their names in `diffusers.Model`.

    Raises:
        ValueError: this library cannot express a field; the message names the field, its value and what is accepted.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    require(f"{where}: _class_name", kind, kind in DEFAULTS, " or ".join(map(repr, DEFAULTS)))
    fields = Fields(_with_new_names(config, where), {**DEFAULTS[kind], **OLD}, where, OF_OTHERS)
    fields.one_of("tensor_format", ("pt", "np", None))
    fields.one_of("timestep_values", (None,))
    schedule = _read_schedule(fields)
    grid, variance = _read_grid(fields), FixedSmall()
    if kind == "DDIMScheduler":
        fields.one_of("set_alpha_to_one", (True,))
        sampler = Ddim(num_steps=min(50, fields["num_train_timesteps"]), grid=grid)  # 50, as in its pipeline
    else:
        sampler, variance = Ancestral(grid=grid), VARIANCES[fields.one_of("variance_type", tuple(VARIANCES))]
    target, clip = _read_target(fields, schedule), _read_clip(fields)
    return {"schedule": schedule, "target": target, "variance": variance, "clip": clip, "sampler": sampler}


def _with_new_names(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config with `timesteps` renamed to num_train_timesteps."""
    new = dict(config)
    if "timesteps" in new:
        steps = new.pop("timesteps")
        same = new.setdefault("num_train_timesteps", steps) == steps
        expected = f"{new['num_train_timesteps']}, that of num_train_timesteps, or no such field"
        require(f"{where}: timesteps", steps, same, expected)
    return new


def _read_target(fields: Fields, schedule: Schedule) -> Target:
    name = fields.one_of("prediction_type", tuple(TARGETS))
    # The older field decides in the versions that have it.
    target = TARGETS[name] if fields.flag("predict_epsilon") else X()
    follows = target != Eps() or bool(schedule.betas()[-1] < 1)
    expected = "'sample' or 'v_prediction', as the last beta is 1, so that z_T holds nothing of x"
    fields.require("prediction_type", follows, expected)
    return target


def _read_schedule(fields: Fields) -> Schedule:
    steps, given = fields.whole("num_train_timesteps"), fields["trained_betas"]
    form = fields.one_of("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    spec: Schedule
    if given is not None:
        listed = isinstance(given, list | tuple) and len(given) == steps
        fields.require("trained_betas", listed, f"null or a list of {steps} numbers, one for each timestep")
        spec = Betas(given)
    elif form == "squaredcos_cap_v2":
        spec = Cosine(steps)
    elif form == "sigmoid":
        start, end = fields.number("beta_start"), fields.number("beta_end")
        spec = Betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))))
    else:
        cls = Linear if form == "linear" else ScaledLinear
        ends = (fields.number("beta_start"), fields.number("beta_end"))
        spec = cls(steps) if steps == PUBLISHED_STEPS and ends == cls.published else cls(steps, *ends)
    return ZeroTerminal(spec) if fields.flag("rescale_betas_zero_snr") else spec


def _read_clip(fields: Fields) -> Clipping:
    clips, bound = fields.flag("clip_sample"), fields.number("clip_sample_range")
    if fields.flag("thresholding"):
        most = fields["sample_max_value"]
        known = most is None or (type(most) in (int, float) and most >= 1)
        fields.require("sample_max_value", known, "null or a number, at least 1")
        if most == 1:
            return Clip()  # the threshold is always 1
        return DynamicThreshold(fields.number("dynamic_thresholding_ratio"), None if most is None else float(most))
    return Clip(-bound, bound) if clips else NoClipping()


def _read_grid(fields: Fields) -> Grid:
    grid = GRIDS[fields.one_of("timestep_spacing", tuple(GRIDS))]
    offset = fields.whole("steps_offset", 0)
    return Leading(offset) if grid is Leading else grid()  # the others take no offset


def write_config(
    schedule: Schedule, target: Target, variance: Variance, clip: Clipping, grid: Grid, report: Callable[[str], None]
) -> dict[str, Any]:
    """The config of diffusers' `DDPMScheduler`, with every field; its chain has all T steps.

    Args:
        schedule, target, variance, clip: the parts of the denoiser.
        grid: the grid of the sampler.
        report: takes a line if the config cannot express the grid.

    Raises:
        ValueError: diffusers cannot express another part; the message names the field, its value and what is accepted.
    """
    require_chain(schedule)
    targets = {value: name for name, value in TARGETS.items()}
    require("target", target, target in targets, "Eps(), X() or V()")
    check_target(target, schedule.build())
    variances = {value: name for name, value in VARIANCES.items() if not name.endswith("_log")}
    require("variance", variance, variance in variances, "FixedSmall(), FixedLarge() or LearnedRange()")
    return {
        "_class_name": "DDPMScheduler",
        **DEFAULTS["DDPMScheduler"],
        **_write_schedule(schedule),
        "prediction_type": targets[target],
        "variance_type": variances[variance],
        **_write_clip(clip),
        **_write_grid(grid, report),
    }


def require_chain(schedule: Any) -> None:
    """Raise ValueError unless a process is a chain, as diffusers' `DDPMScheduler` takes no other."""
    require(
        "process", schedule, isinstance(schedule, Schedule), "a chain, such as Linear(), as diffusers takes no other"
    )


def _write_schedule(schedule: Schedule) -> dict[str, Any]:
    if type(schedule) is ZeroTerminal:
        return {**_write_schedule(schedule.of), "rescale_betas_zero_snr": True}
    betas = schedule.betas()
    steps = {"num_train_timesteps": len(betas)}
    if type(schedule) in (Linear, ScaledLinear):
        assert isinstance(schedule, Linear)
        ends = (schedule.beta_start, schedule.beta_end)
        if schedule.beta_start is None and len(betas) == PUBLISHED_STEPS:
            ends = schedule.published
        if ends[0] is not None:
            form = "linear" if type(schedule) is Linear else "scaled_linear"
            return {**steps, "beta_schedule": form, "beta_start": ends[0], "beta_end": ends[1]}
    if schedule == Cosine(len(betas)):
        return {**steps, "beta_schedule": "squaredcos_cap_v2"}
    return {**steps, "trained_betas": betas.tolist()}


def _write_clip(clip: Clipping) -> dict[str, Any]:
    if isinstance(clip, DynamicThreshold):
        ratio = {"thresholding": True, "dynamic_thresholding_ratio": clip.quantile}
        return {"clip_sample": False, **ratio, "sample_max_value": clip.maximum}
    if isinstance(clip, Clip):
        require("clip", clip, clip.low == -clip.high, "Clip(-r, r), with equal bounds")
        return {"clip_sample": True, "clip_sample_range": clip.high}
    require("clip", clip, isinstance(clip, NoClipping), "Clip(), DynamicThreshold() or NoClipping()")
    return {"clip_sample": False}


def _write_grid(grid: Grid, report: Callable[[str], None]) -> dict[str, Any]:
    for name, cls in GRIDS.items():
        if type(grid) is cls:
            return {"timestep_spacing": name, "steps_offset": grid.offset if isinstance(grid, Leading) else 0}
    report(f"the sampler's grid is {grid}, which diffusers does not have; its timestep_spacing will be 'trailing'")
    return {"timestep_spacing": "trailing"}
