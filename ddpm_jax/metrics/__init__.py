"""How far are samples from data?  Functions of the features of images, float [n, d].

| module | what it measures |
|---|---|
| `frechet` | the Frechet distance (FID), and the moments that it needs |
| `jackknife` | the standard error of a Frechet distance, by leaving out each row |
| `kernel` | the kernel distance (KID), with a standard error |
| `manifold` | precision and recall, density and coverage |
| `sliced` | the sliced Wasserstein distance |
| `inception_score` | the Inception Score, of a classifier's logits |
| `neighbours` | the nearest rows of another set |
| `memorisation` | whether samples are copies of training images |
| `spectrum` | the power of each spatial frequency of images |

```python
import numpy as np
from ddpm_jax.metrics.frechet import frechet_distance, moments
from ddpm_jax.metrics.jackknife import frechet_estimate
from ddpm_jax.metrics.kernel import kernel_distance

rng = np.random.default_rng(0)
samples, data = rng.normal(size=(500, 16)), rng.normal(size=(1000, 16))
distance = frechet_distance(moments(samples), moments(data))
estimate = frechet_estimate(samples, moments(data))  # value, standard_error, interval()
kid = kernel_distance(samples, data, subset_size=100)
```

With m, C the mean and covariance of the features:

    Frechet distance    |m_x - m_y|^2 + trace(C_x + C_y - 2 (C_x C_y)^(1/2))
    kernel distance     MMD^2 with k(x, y) = (x . y / d + 1)^3, unbiased

All of them read features as `Rows`, block by block.  Their memory does not grow with n, except for a few numbers per
row (64 in `sliced`).  `ddpm_jax.features` makes the features, and `ddpm_jax.evaluation` reports the scores.
"""

from typing import TYPE_CHECKING

from ddpm_jax import lazy_modules

if TYPE_CHECKING:
    from ddpm_jax.metrics import feature_rows, frechet, inception_score, jackknife, kernel, manifold

    # isort: split
    from ddpm_jax.metrics import memorisation, neighbours, sliced, spectrum

__all__ = ["feature_rows", "frechet", "inception_score", "jackknife", "kernel", "manifold"]
__all__ += ["memorisation", "neighbours", "sliced", "spectrum"]

__getattr__ = lazy_modules(__name__, __all__)
