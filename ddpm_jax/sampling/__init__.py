"""Drawing new data: the model run from z_T ~ N(0, I) to x.

`sample` runs any `Sampler`, and `sample_path` shows the way; `invert` goes from x to z_T, `inpaint` fills in what is
missing, `interpolate` mixes two images.
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

__all__ = ["Ancestral", "Ddim", "DpmSolver", "ExponentialHeun", "Heun", "Sampler", "StepInput"]
__all__ += ["Given", "Grid", "Karras", "Leading", "Linspace", "LogSnr", "Quadratic", "Uniform"]
__all__ += ["Path", "inpaint", "interpolate", "invert", "sample", "sample_path"]
