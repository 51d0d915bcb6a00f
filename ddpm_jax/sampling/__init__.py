"""Drawing new data: the decoder run from z_T ~ N(0, I) to x.

`sample` runs any `Sampler`; `Ancestral` and `Ddim` are two.
"""

from ddpm_jax.sampling.ancestral import Ancestral
from ddpm_jax.sampling.ddim import Ddim
from ddpm_jax.sampling.sampler import Sampler, sample, uniform_times

__all__ = ["Ancestral", "Ddim", "Sampler", "sample", "uniform_times"]
