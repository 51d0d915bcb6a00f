r"""How is the model run backwards?  From noise to x, by one of six samplers, on every process.

`sample` is algorithm 2 of Ho et al. 2020 for any sampler.  Image i depends on the key and on i only, not on the batch
or the number of devices.

```python
import jax
import jax.numpy as jnp
from ddpm_jax import Denoiser, forward, schedule, targets
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, inpaint, invert, sample, sample_path

process = schedule.Cosine(num_steps=1000).build()
model = Denoiser(lambda z_t, t: 0 * z_t, process, target=targets.X())  # a network that predicts x = 0
key, shape = jax.random.key(0), (4, 8, 8, 1)

x = sample(key, model, Ddim(num_steps=10), shape)
path = sample_path(key, model, Ddim(10), shape, frames=5, of="x")  # path.frames [5, 4, 8, 8, 1]
z_400 = forward.diffuse(process, x, 400, jax.random.normal(key, shape))
edited = sample(key, model, DpmSolver(10), shape, start=(z_400, 400))  # partial noising, then sampling
z_T = invert(model, Ddim(10), x)
filled = inpaint(key, model, Ancestral(10), x, jnp.arange(8)[:, None, None] < 4, jump=2, resamples=2)
```

| function | what it does |
|---|---|
| `sample`, `sample_path` | draw x from noise, or from any z_t (`start`); keep frames of the path |
| `invert` | from x to the z_T that DDIM turns into it |
| `inpaint` | RePaint: draw the part of an image that a mask leaves out |
| `interpolate` | mix two images at time t |

The samplers clip a predicted x only if the denoiser has a `clip`.

## Samplers

    Ancestral         z_s ~ p(z_s | z_t)                                        stochastic, Ho et al. 2020
    Ddim              z_s = signal_s x + noise_s eps, with eta = 0              first order, Song et al. 2021
    DpmSolver         DPM-Solver++(2M), one evaluation a step; sde=True         second order, Lu et al. 2022
    UniPc             predictor and corrector, one evaluation a step            third order, Zhao et al. 2023
    Heun              EDM, two evaluations a step, on its own grid; churn       second order, Karras et al. 2022
    ExponentialHeun   two evaluations a step, bounded on every grid             second order

On a continuous process the last step leads from the last time of the grid to clean data.  A sampler reads the numbers of
its step from `now.step`: signal_t, noise_t, signal_s, noise_s and those that follow from them.

A grid says which times the steps visit: `Uniform`, `Leading`, `Linspace`, `Quadratic`, `LogSnr`, `Karras`, or
`Given` times.  A sampler of your own derives from `Sampler` and gives `step`; the architecture page has an example.

## Measured

`python scripts/sampler_table.py runs/digits` (with `pip install -e .[test,figures]`; about an hour on two CPU cores)
printed this table for the model of experiments/digits.py.  The columns are numbers of network evaluations.  Each cell
is the Frechet distance of 1,000 images, all classes in turn, to the training split, in the features of a small
classifier, and then the bits/dim of the test split (256 levels).  Empty cells were not measured.

| sampler | 10 | 20 | 50 | 100 | 250 | 1000 |
|---|---|---|---|---|---|---|
| ancestral, small variance | 0.88 · 4.22 | 0.65 · 4.38 | 0.61 · 4.60 | 0.55 · 4.69 | 0.49 · 4.68 | 0.46 · 4.65 |
| ancestral, large variance | 0.63 · 4.43 | 0.49 · 4.50 | 0.52 · 4.54 | 0.51 · 4.56 | 0.47 · 4.55 | 0.45 · 4.50 |
| SDE-DPM-Solver++(2M) | 0.51 | 0.40 | 0.46 | 0.45 | 0.45 | 0.45 |
| DDIM | 0.53 · 4.73 | 0.41 · 4.73 | 0.36 · 4.73 | 0.35 · 4.73 | 0.34 · 4.73 | 0.34 · 4.73 |
| DPM-Solver++(2M) | 0.40 · 4.73 | 0.36 · 4.73 | 0.35 · 4.73 | 0.35 · 4.73 | 0.34 · 4.73 | 0.34 · 4.73 |
| exponential Heun | 0.37 · 4.73 | 0.34 · 4.73 | 0.34 · 4.73 | 0.34 · 4.73 | | |
| Heun, EDM grid | 2.05 · 4.73 | 0.37 · 4.73 | 0.34 · 4.73 | 0.34 · 4.73 | 0.35 · 4.73 | 0.35 · 4.73 |

![Frechet distance and bits/dim of each sampler against network evaluations; rate against distortion](experiments/samplers.png)

The 360 images of the test split have a distance of 0.76.  A distance grows as the number of images falls, so these
numbers compare with one another and with nothing else.  A strided chain is a decoder of its own, and its bits/dim are
the variational bound of that chain.  The deterministic samplers follow one flow, whose likelihood does not depend on
the number of steps: 4.73, by an adaptive integrator.  SDE-DPM-Solver++ uses the two steps before, so it is no Markov
chain and has no such bound.

Distances this small say little about a solver.  Its error says more: the RMSE of x from the flow of the same network,
without clipping.  It decides the default grids.  `python scripts/sampler_table.py runs/digits --rmse` (12 minutes on
two busy CPU cores) printed, for 256 digits:

| sampler (evaluations) | Uniform | Quadratic | Karras |
|---|---|---|---|
| DpmSolver (10, 15, 35) | 0.037 / 0.023 / 0.0093 | 0.03 / 0.017 / 0.0044 | 0.049 / 0.022 / 0.0047 |
| ExponentialHeun (9, 15, 35) | 0.065 / 0.04 / 0.018 | 0.032 / 0.014 / 0.0046 | 0.14 / 0.064 / 0.014 |
| Heun (9, 15, 35) | 160 / 47 / 4.9 | 750 / 240 / 32 | 0.44 / 0.093 / 0.016 |

For another training of the same experiment, on `Quadratic` at 5, 8, 10 and 15 evaluations, UniPc has
0.057 / 0.02 / 0.012 / 0.0059 and DpmSolver 0.087 / 0.041 / 0.03 / 0.017.

The lowest error of each sampler is on its default grid: `Quadratic` for the first two, `Karras` for `Heun`, which is
useless on the others.  At 9 and 10 evaluations the numbers of `Quadratic` vary with the noise: for 64 digits of other
z_T they were 0.036 and 0.047.

## Three processes compared

`python scripts/compare_runs.py runs/digits runs/digits_edm runs/digits_flow` compares DDPM, EDM and rectified flow: the
same network, steps and minutes.  It took about 25 minutes on two busy CPU cores, in several parts.  The distances are those of 1,000
images, as above; the columns are numbers of network evaluations, and each sampler has its default grid.

| run | sampler | 5 | 10 | 20 | 50 |
|---|---|---|---|---|---|
| digits | Ddim | 0.85 | 0.53 | 0.41 | 0.36 |
| digits | UniPc | 0.42 | 0.35 | 0.34 | 0.34 |
| digits | Heun | 41.39 | 2.05 | 0.37 | 0.34 |
| digits_edm | Ddim | 1.47 | 0.78 | 0.48 | 0.37 |
| digits_edm | UniPc | 0.74 | 0.41 | 0.34 | 0.34 |
| digits_edm | Heun | 15.81 | 2.47 | 0.39 | 0.34 |
| digits_flow | Ddim | 0.70 | 0.43 | 0.38 | 0.37 |
| digits_flow | UniPc | 0.36 | 0.37 | 0.39 | 0.39 |
| digits_flow | Heun | 20.32 | 2.06 | 0.43 | 0.38 |

The three networks are about equally good at 50 evaluations.  At 5 and 10 EDM is behind by its grid alone: even steps in
log sigma are long where the image is decided.  At the SNRs that the cosine chain visits, the network of digits_edm has
0.68 and 0.44 with Ddim, and 0.32 and 0.33 with UniPc.

Bits/dim of the test split, 360 images, with the small variance: the bound of K steps, the bound of all steps (T in the
chain, infinitely many in the others; 100 random terms of each image), and the probability flow, which is the same for
every number of steps.

| run | grid of the bound | 5 | 10 | 20 | 50 | all steps | flow |
|---|---|---|---|---|---|---|---|
| digits | Uniform | 4.13 | 4.22 | 4.38 | 4.60 | 4.65 | 4.73 |
| digits_edm | Uniform | 23.83 | 10.00 | 6.58 | 5.15 | 4.38 | 4.50 |
| digits_edm | Linspace | 104.32 | 14.60 | 7.32 | 5.30 | 4.38 | 4.50 |
| digits_flow | Uniform | 4.29 | 4.49 | 4.89 | 5.63 | 6.60 | 5.39 |
| digits_flow | Linspace | 18431.93 | 4590.18 | 1279.71 | 276.41 | 6.60 | 5.39 |

A long step down to a small sigma costs a factor of SNR, so few steps that visit the clean end have a poor bound.  The
flow of the tables was trained with `LogitNormal()`, which hardly ever draws a small t: read as a process that ends at
t = 0.01 rather than 0.001, the same network has 5.07 rather than 6.60.  Trained with EDM's density instead,
`LogitNormal(mean=-1.2, std=1.2)` as experiments/digits_flow.py now has it, it has 0.31, 0.30 and 0.31 with UniPc at 5, 10
and 50 evaluations, 4.90 bits/dim in the bound of all steps and 4.44 in the flow: the best of the three in distance and
in the flow.
"""

from ddpm_jax.diffusion.grids import Given, Grid, Karras, Leading, Linspace, LogSnr, Quadratic, Uniform
from ddpm_jax.sampling.ancestral import Ancestral
from ddpm_jax.sampling.ddim import Ddim
from ddpm_jax.sampling.dpm_solver import DpmSolver
from ddpm_jax.sampling.exponential_heun import ExponentialHeun
from ddpm_jax.sampling.heun import Heun
from ddpm_jax.sampling.inpaint import inpaint
from ddpm_jax.sampling.interpolate import interpolate
from ddpm_jax.sampling.invert import invert
from ddpm_jax.sampling.sampler import Path, Sampler, StepInput, sample, sample_path
from ddpm_jax.sampling.uni_pc import UniPc

__all__ = ["Ancestral", "Ddim", "DpmSolver", "ExponentialHeun", "Heun", "Sampler", "StepInput", "UniPc"]
__all__ += ["Given", "Grid", "Karras", "Leading", "Linspace", "LogSnr", "Quadratic", "Uniform"]
__all__ += ["Path", "inpaint", "interpolate", "invert", "sample", "sample_path"]
