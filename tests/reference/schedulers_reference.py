"""The samplers held against an independent implementation: the schedulers of diffusers, step by step.

    pip install -e . torch diffusers
    python tests/reference/schedulers_reference.py          # a few seconds

writes tests/reference/schedulers.npz, what diffusers' schedulers make of the same inputs, and prints how far ours
are from it.  Expect differences near 1e-6.

    DDPMScheduler                  single steps of our Ancestral with both fixed variances
    DDIMScheduler                  single steps of our Ddim for three values of eta, in chains of three lengths
    DPMSolverMultistepScheduler    whole runs of our DpmSolver without and with noise, over the same timesteps

The inputs are a function of the case (`numbers`), so the test makes them without torch.  diffusers counts timesteps
from 0: theirs are ours less 1.  Its tables are replaced by float64 ones of our schedule, and it is given float64
inputs, so that the differences are those of our float32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers_reference import numbers

from ddpm_jax.diffusion.arrays import lookup
from ddpm_jax.diffusion.clipping import Clip, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Given
from ddpm_jax.diffusion.schedule import Chain, Cosine, Linear, Schedule
from ddpm_jax.diffusion.targets import Eps, Target, V, X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, Variance
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, Sampler, StepInput

REFERENCE = Path(__file__).parent / "schedulers.npz"

SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "cosine": Cosine()}
TARGETS: dict[str, Target] = {"epsilon": Eps(), "sample": X(), "v_prediction": V()}
VARIANCES: dict[str, Variance] = {"fixed_small": FixedSmall(), "fixed_large": FixedLarge()}
SHAPE = (3, 4)  # of the data of one case, at each of its timesteps


@dataclass(frozen=True)
class Steps:
    """Single steps t -> max(t - stride, 0) of one scheduler."""

    schedule: str
    prediction: str
    times: tuple[int, ...]
    stride: int = 1
    variance: str | None = None
    """The variance of DDPM; None for DDIM."""
    eta: float = 0.0
    """For DDIM."""
    clip: bool = False

    @property
    def name(self) -> str:
        kind = self.variance or f"ddim_eta{self.eta:g}_stride{self.stride}"
        return f"{kind}_{self.schedule}_{self.prediction}{'_clip' if self.clip else ''}"

    @property
    def sampler(self) -> Sampler:
        return Ancestral() if self.variance else Ddim(eta=self.eta)


@dataclass(frozen=True)
class Run:
    """A whole run of DPM-Solver++(2M) with the denoiser `model`."""

    schedule: str
    times: tuple[int, ...]
    sde: bool

    @property
    def name(self) -> str:
        return f"dpm{'_sde' if self.sde else ''}_{self.schedule}_{len(self.times)}"

    @property
    def sampler(self) -> DpmSolver:
        return DpmSolver(num_steps=None, grid=Given(self.times), sde=self.sde)


EVERY = (1, 2, 3, 10, 250, 500, 900, 999)
STEPS = tuple(
    Steps(schedule, prediction, EVERY, variance=variance)
    for schedule in SCHEDULES
    for prediction in TARGETS
    for variance in VARIANCES
)
STEPS += (Steps("linear", "epsilon", EVERY, variance="fixed_large", clip=True),)
# A chain of 1000 // stride steps visits 1, 1 + stride, ... in diffusers' "leading" spacing.
STEPS += tuple(
    Steps(schedule, prediction, tuple(1 + stride * i for i in (0, 1, 2, 1000 // stride - 1)), stride, eta=eta)
    for schedule in SCHEDULES
    for prediction in TARGETS
    for stride in (1, 20, 100)
    for eta in (0.0, 0.5, 1.0)
)
STEPS += (Steps("linear", "epsilon", (1, 21, 41, 981), 20, eta=0.5, clip=True),)
RUNS = tuple(
    Run(schedule, times, sde)
    for schedule in SCHEDULES
    for times in ((999, 900, 801, 650, 500, 350, 200, 100, 50, 10), tuple(range(980, 0, -49)))
    for sde in (False, True)
)
CASES: dict[str, Steps | Run] = {case.name: case for case in (*STEPS, *RUNS)}


def values(case: Steps | Run, name: str) -> np.ndarray:
    """The numbers called `name` of a case: one array of SHAPE for each of its timesteps."""
    return numbers(f"{case.name}/{name}", (len(case.times), *SHAPE))


def model(schedule: Chain, z_t: Any, t: Any) -> Any:
    """A smooth prediction of x in [-1, 1], another one at each t; it does not amplify errors of rounding much."""
    return jnp.tanh(lookup(schedule.signal, t, z_t) * z_t + 0.2 * jnp.sin(2 * z_t))


def ours(case: Steps | Run) -> np.ndarray:
    """What our samplers make of a case: [timesteps, *SHAPE]."""
    return np.asarray(_our_steps(case) if isinstance(case, Steps) else _our_run(case))


def _our_steps(case: Steps) -> jax.Array:
    variance = VARIANCES[case.variance or "fixed_small"]
    t = np.array(case.times, np.int32)
    arguments = (SCHEDULES[case.schedule].build(), t, np.maximum(t - case.stride, 0).astype(np.int32))
    draws = [values(case, name) for name in ("z", "output", "noise")]
    return _steps(case.sampler, TARGETS[case.prediction], variance, case.clip, *arguments, *draws)


def _step(sampler: Sampler, target: Target, variance: Variance, clip: bool, schedule: Chain, *arrays: Any) -> jax.Array:
    t, s, z, output, noise = arrays
    decoder = Denoiser(lambda z_t, t: output, schedule, target, variance, Clip() if clip else NoClipping())
    now = StepInput(z, schedule.step(t, s).like(z), decoder.denoise(z, t), noise)
    return sampler.step(decoder, now, sampler.start(z))[0]


_steps = jax.jit(_step, static_argnums=(0, 1, 2, 3))


def _our_run(case: Run) -> jax.Array:
    """Every z after the first, with the noise of the case."""
    schedule = SCHEDULES[case.schedule].build()
    times = case.sampler.times(schedule)
    return _run(case.sde, schedule, jnp.asarray(values(case, "z")[0]), times[:-1], times[1:], values(case, "noise"))


def _scan(sde: bool, schedule: Chain, z: Any, begins: Any, ends: Any, noises: Any) -> jax.Array:
    sampler = DpmSolver(sde=sde)
    decoder = Denoiser(jax.tree_util.Partial(model, schedule), schedule, X(), FixedSmall())

    def step(carry: Any, item: Any) -> Any:
        (z, memory), (t, s, noise) = carry, item
        now = StepInput(z, schedule.step(t, s), decoder.denoise(z, t), noise)
        z, memory = sampler.step(decoder, now, memory)
        return (z, memory), z

    return jax.lax.scan(step, (z, sampler.start(z)), (begins, ends, noises))[1]


_run = jax.jit(_scan, static_argnums=0)


def theirs(case: Steps | Run) -> np.ndarray:
    """What diffusers makes of a case."""
    return _their_steps(case) if isinstance(case, Steps) else _their_run(case)


def _scheduler(kind: str, case: Steps | Run, **options: Any) -> Any:
    """A scheduler of diffusers with our betas, its tables in float64."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    betas = SCHEDULES[case.schedule].betas()
    scheduler = getattr(diffusers, kind)(trained_betas=betas, num_train_timesteps=len(betas), **options)
    scheduler.betas = torch.from_numpy(betas)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    return scheduler


def _their_steps(case: Steps) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers.schedulers import scheduling_ddpm  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"prediction_type": case.prediction, "clip_sample": case.clip}
    if case.variance:
        scheduler = _scheduler("DDPMScheduler", case, variance_type=case.variance, **options)
    else:
        scheduler = _scheduler("DDIMScheduler", case, set_alpha_to_one=True, **options)
        scheduler.set_timesteps(scheduler.config.num_train_timesteps // case.stride)
        assert {t - 1 for t in case.times} <= set(scheduler.timesteps.tolist())
    results = []
    draws = (torch.from_numpy(values(case, name).astype(np.float64)) for name in ("z", "output", "noise"))
    original = scheduling_ddpm.randn_tensor
    for t, z, output, noise in zip(case.times, *draws, strict=True):
        if case.variance:
            scheduling_ddpm.randn_tensor = lambda *_, noise=noise, **__: noise
            result = scheduler.step(output, t - 1, z)
            scheduling_ddpm.randn_tensor = original
        else:
            # Ours is the eps that goes with the clipped x; theirs is only if asked for.
            ddim = {"eta": case.eta, "use_clipped_model_output": case.clip}
            result = scheduler.step(output, t - 1, z, **ddim, variance_noise=noise if case.eta > 0 else None)
        results.append(result.prev_sample.numpy())
    return np.stack(results)


def _their_run(case: Run) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    scheduler = _scheduler(
        "DPMSolverMultistepScheduler",
        case,
        algorithm_type="sde-dpmsolver++" if case.sde else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="sample",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(timesteps=[t - 1 for t in case.times])
    alpha_bar = scheduler.alphas_cumprod[[t - 1 for t in case.times]]
    scheduler.sigmas = torch.cat([torch.sqrt((1 - alpha_bar) / alpha_bar), torch.zeros(1, dtype=torch.float64)])
    z, results = torch.from_numpy(values(case, "z")[0].astype(np.float64)), []
    for theirs, noise in zip(scheduler.timesteps, values(case, "noise"), strict=True):
        signal = torch.sqrt(scheduler.alphas_cumprod[theirs])
        x = torch.tanh(signal * z + 0.2 * torch.sin(2 * z))  # `model`
        z = scheduler.step(x, theirs, z, variance_noise=torch.from_numpy(noise.astype(np.float64))).prev_sample
        results.append(z.double().numpy())
    return np.stack(results)


def stored() -> dict[str, np.ndarray]:
    """What diffusers made of every case, from the file."""
    ends = np.cumsum([len(case.times) for case in CASES.values()])[:-1]
    with np.load(REFERENCE) as file:
        return dict(zip(CASES, np.split(file["steps"], ends), strict=True))


def main() -> None:
    """Compare every case, and store what diffusers makes of it."""
    references = {name: theirs(case) for name, case in CASES.items()}
    largest: dict[str, float] = {}
    for name, case in CASES.items():
        kind = name.split("_linear")[0].split("_cosine")[0].split("_stride")[0]
        largest[kind] = max(largest.get(kind, 0.0), float(np.abs(ours(case) - references[name]).max()))
    for kind, difference in largest.items():
        print(f"{kind}: largest difference {difference:.1e}")
    steps = np.concatenate([references[name] for name in CASES]).astype(np.float32)
    np.savez_compressed(REFERENCE, steps=steps)
    print(f"wrote {REFERENCE} ({REFERENCE.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
