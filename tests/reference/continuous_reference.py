"""Whole runs of our samplers held against diffusers' schedulers: EDM, flow matching, and UniPC.

    pip install -e . torch diffusers
    python tests/reference/continuous_reference.py          # a few seconds

writes tests/reference/continuous.npz, the z after each step of diffusers' schedulers (0.42.1, with torch 2.13.0), and
prints how far ours are from it.  Expect differences near 1e-6.

    EDMEulerScheduler                  VarianceExploding, target Edm,     Ddim        "karras": Karras
                                                                                      "exponential": LogSnr(-inf)
    EDMDPMSolverMultistepScheduler     the same,                          DpmSolver
    FlowMatchEulerDiscreteScheduler    RectifiedFlow, target Velocity,    Ddim        Given
    UniPCMultistepScheduler            chains, targets X and V,           UniPc       "trailing": Uniform
                                       RectifiedFlow, Velocity            UniPc       Given

The inputs are a function of the case, so the test makes them without torch.  What differs:

- diffusers rounds its sigmas to float32.  They are replaced by the same formulas in float64, and z and the outputs of
  the network are float64.  Two schedulers round z to float32 before each step nevertheless, EDMEulerScheduler and
  FlowMatchEulerDiscreteScheduler.
- Its timesteps are c_noise = log(sigma) / 4 for EDM, 1000 t for flow matching, and ours less 1 for chains.
- FlowMatchEulerDiscreteScheduler shifts the smallest time twice, when it is made and when it is given a number of
  steps; `shifted` does so, too.
- UniPCMultistepScheduler has no flow at t = 1, where SNR is 0: it begins at 1 - 1e-6.  The run here begins at 0.98.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers_reference import numbers

from ddpm_jax.devices.float64 import in_float64
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Given, Karras, LogSnr, Uniform
from ddpm_jax.diffusion.process import Continuous, RectifiedFlow, VarianceExploding
from ddpm_jax.diffusion.schedule import Cosine, Linear, Schedule
from ddpm_jax.diffusion.targets import Edm, Target, V, Velocity, X
from ddpm_jax.sampling import Ddim, DpmSolver, Sampler, UniPc, sample_path

REFERENCE = Path(__file__).parent / "continuous.npz"
SHAPE = (3, 4)


@dataclass(frozen=True)
class Case:
    """A run of a scheduler from the noisy end, and the same of ours."""

    scheduler: str
    spec: Continuous | Schedule
    target: Target
    sampler: Sampler
    options: dict[str, Any] = field(default_factory=dict)
    """Of the scheduler."""

    @property
    def steps(self) -> int:
        return len(self.sampler.times(self.spec.build())) - 1


def shifted(shift: float, steps: int) -> Given:
    """The times of flow matching with a shift, which moves them towards noise."""

    def shifts(t: Any) -> Any:
        return shift * t / (1 + (shift - 1) * t)

    return Given(shifts(np.linspace(1.0, shifts(0.001), steps)))


EDM = (VarianceExploding(0.002, 80.0, sigma_data=0.5), Edm(0.5))
NARROW = (VarianceExploding(0.01, 20.0, sigma_data=1.0), Edm(1.0))
NARROW_OPTIONS = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0}
FLOW = (RectifiedFlow(last=1.0), Velocity())
FLOW_TIMES = (0.98, 0.9, 0.8, 0.65, 0.5, 0.3, 0.15, 0.05)
TRAILING = {"timestep_spacing": "trailing"}
CASES = {
    "euler_5": Case("EDMEulerScheduler", *EDM, Ddim(5, Karras())),
    "euler_18": Case("EDMEulerScheduler", *EDM, Ddim(18, Karras())),
    "euler_exponential": Case("EDMEulerScheduler", *EDM, Ddim(12, LogSnr(-np.inf)), {"sigma_schedule": "exponential"}),
    "euler_narrow": Case("EDMEulerScheduler", *NARROW, Ddim(10, Karras(5.0, 0.01, 20.0)), NARROW_OPTIONS),
    "dpm_6": Case("EDMDPMSolverMultistepScheduler", *EDM, DpmSolver(6, Karras())),
    "dpm_20": Case("EDMDPMSolverMultistepScheduler", *EDM, DpmSolver(20, Karras())),
    "dpm_narrow": Case(
        "EDMDPMSolverMultistepScheduler", *NARROW, DpmSolver(12, Karras(5.0, 0.01, 20.0)), NARROW_OPTIONS
    ),
    "flow_10": Case("FlowMatchEulerDiscreteScheduler", *FLOW, Ddim(None, shifted(1.0, 10))),
    "flow_shift_4": Case("FlowMatchEulerDiscreteScheduler", *FLOW, Ddim(None, shifted(3.0, 4)), {"shift": 3.0}),
    "flow_shift_28": Case("FlowMatchEulerDiscreteScheduler", *FLOW, Ddim(None, shifted(3.0, 28)), {"shift": 3.0}),
    "unipc_flow": Case("UniPCMultistepScheduler", *FLOW, UniPc(None, Given(FLOW_TIMES)), {"use_flow_sigmas": True}),
}
CASES |= {
    f"unipc_{type(spec).__name__.lower()}_{steps}": Case(
        "UniPCMultistepScheduler", spec, target, UniPc(steps, Uniform()), TRAILING
    )
    for spec, targets in ((Linear(), (X(), V(), X())), (Cosine(), (V(), X(), V())))
    for steps, target in zip((5, 10, 20), targets, strict=True)
}
PREDICTIONS = {Edm: "epsilon", X: "sample", V: "v_prediction", Velocity: "flow_prediction"}


def network(of: Any, z: Any, label: Any) -> Any:
    """A smooth output of order 1; of: jax.numpy or torch."""
    return of.tanh(z) * of.cos(label) + 0.2 * of.sin(2 * z + label)


def label_of(case: Case, process: Any, t: Any) -> Any:
    """What the network is given for t, about -2 to 3."""
    if isinstance(case.spec, VarianceExploding):
        return jnp.log(process.noise(t)) / 4
    return 3 * t / process.last


def noise(name: str) -> np.ndarray:
    """z of variance 1."""
    return numbers(f"continuous/{name}", SHAPE)


def ours(name: str) -> np.ndarray:
    """z at the beginning and after each step, divided by its standard deviation for data of variance 1."""
    case, process = CASES[name], CASES[name].spec.build()

    def predict(z: Any, t: Any) -> Any:
        label = label_of(case, process, t)[:, None]
        return network(jnp, process.input_scale(t)[:, None] * z, label)

    model = Denoiser(predict, process, target=case.target)
    times = case.sampler.times(process)
    scale = np.append(in_float64(lambda t: jnp.hypot(process.signal(t), process.noise(t)), times[:-1]), 1.0)
    start = (jnp.asarray(scale[0] * noise(name), jnp.float32), times[0])
    path = sample_path(jax.random.key(0), model, case.sampler, SHAPE, case.steps + 1, start=start)
    return np.asarray(path.frames, np.float64) / scale[:, None, None]


def theirs(name: str) -> np.ndarray:
    """The same of diffusers."""
    import torch  # pyright: ignore[reportMissingImports]

    case = CASES[name]
    scheduler, sigmas, scales, labels = _scheduler(case)
    z = scales[0] * torch.from_numpy(noise(name)).double()
    results = [z]
    for t, label in zip(scheduler.timesteps, labels, strict=True):
        given = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
        z = scheduler.step(network(torch, given, label), t, z).prev_sample
        assert z.dtype == torch.float64
        results.append(z)
    assert torch.equal(scheduler.sigmas, sigmas)
    return (torch.stack(results) / scales[:, None, None]).numpy()


def _scheduler(case: Case) -> tuple[Any, Any, Any, Any]:
    """(a scheduler of diffusers, its sigmas in float64, the standard deviations of z, the labels)."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    kind = getattr(diffusers, case.scheduler)
    steps = case.steps
    prediction = {} if kind is diffusers.FlowMatchEulerDiscreteScheduler else {"prediction_type": _prediction(case)}
    if isinstance(case.spec, Schedule):
        betas = case.spec.betas()
        scheduler = kind(trained_betas=betas, num_train_timesteps=len(betas), **prediction, **case.options)
        scheduler.set_timesteps(steps)
        alpha_bar = torch.from_numpy(np.cumprod(1 - betas))[scheduler.timesteps]
        sigmas, scales = torch.sqrt((1 - alpha_bar) / alpha_bar), torch.ones(steps + 1, dtype=torch.float64)
        labels = 3 * (scheduler.timesteps + 1).double() / len(betas)
    elif isinstance(case.spec, VarianceExploding):
        scheduler = kind(**prediction, **case.options)
        scheduler.set_timesteps(steps)
        table: Callable[[Any], Any] = getattr(scheduler, f"_compute_{scheduler.config.sigma_schedule}_sigmas")
        torch.set_default_dtype(torch.float64)
        sigmas = table(torch.linspace(0, 1, steps))
        torch.set_default_dtype(torch.float32)
        scales = torch.cat([torch.sqrt(1 + sigmas**2), torch.ones(1)])
        labels = torch.log(sigmas) / 4
    else:
        scheduler = kind(**prediction, **case.options)
        assert isinstance(case.sampler.grid, Given)
        given = (
            {"sigmas": np.array(FLOW_TIMES)}
            if kind is diffusers.UniPCMultistepScheduler
            else {"num_inference_steps": steps}
        )
        scheduler.set_timesteps(**given)
        sigmas = torch.tensor(case.sampler.grid.timesteps, dtype=torch.float64)
        scales = torch.cat([torch.hypot(1 - sigmas, sigmas), torch.ones(1)])
        labels = 3 * sigmas
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    np.testing.assert_allclose(scheduler.sigmas, sigmas, rtol=2e-4)  # its own, in float32
    scheduler.sigmas = sigmas
    return scheduler, sigmas, scales, labels


def _prediction(case: Case) -> str:
    return PREDICTIONS[type(case.target)]


def stored() -> dict[str, np.ndarray]:
    """What diffusers made of every case, from the file."""
    ends = np.cumsum([case.steps + 1 for case in CASES.values()])[:-1]
    with np.load(REFERENCE) as file:
        return dict(zip(CASES, np.split(file["paths"], ends), strict=True))


def main() -> None:
    """Compare every case, and store what diffusers makes of it."""
    references = {name: theirs(name) for name in CASES}
    for name, reference in references.items():
        difference = np.abs(ours(name) - reference).max()
        print(f"{name}: values up to {np.abs(reference).max():.2f}, largest difference {difference:.1e}")
    np.savez_compressed(REFERENCE, paths=np.concatenate(list(references.values())).astype(np.float32))
    print(f"wrote {REFERENCE} ({REFERENCE.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
