"""What are images compared by?  Features from Inception-v3, from a classifier of your own data, or from any function.

```python
import numpy as np
from ddpm_jax.features.extractor import extract, of_function
from ddpm_jax.features.read import read_extractor

images = np.zeros((8, 8, 8, 1), np.uint8)
features, logits = extract(read_extractor("pixels"), images)  # float32 [8, 64]; logits None
mean = of_function(lambda images: images.reshape(len(images), -1).mean(1, keepdims=True) / 255)
```

| `--features`, `read_extractor` | the features |
|---|---|
| `inception` | the network of FID, in JAX; its weights, 96 MB, are downloaded at first use, and their hash is checked |
| `inception:PATH` | the same network with the weights of a file: a `.pth`, whose code is not run, or safetensors |
| `PATH.safetensors` | a classifier of your own data, from scripts/train_features.py |
| `FILE.py:NAME` | a function of uint8 images, or an `Extractor` |
| `pixels` | the pixels |

A distance in the features of one network compares only with distances in the same features.  So an extractor carries
its name, the digest of its weights or source, and its preprocessing, and a report prints them.

With the same weights the features of Inception equal those of torch-fidelity to 1e-5, and the metrics equal those of
torch-fidelity, prdc and SciPy (tests/reference/inception_reference.py, tests/reference/metrics_reference.py).
"""

from typing import TYPE_CHECKING

from ddpm_jax import lazy_modules

if TYPE_CHECKING:
    from ddpm_jax.features import classifier, extractor, inception, read

__all__ = ["classifier", "extractor", "inception", "read"]

__getattr__ = lazy_modules(__name__, __all__)
