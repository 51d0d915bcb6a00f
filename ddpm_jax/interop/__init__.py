"""Whose weights?  Networks to and from diffusers, as safetensors, with their schedules and a model card.

    ddpm-jax import PATH --output runs/imported     # a folder in the layout of google/ddpm-cifar10-32, or a UNet2DModel
    ddpm-jax train runs/imported/experiment.json --workdir runs/imported --data.path images.npz --num-steps 10000
    ddpm-jax export runs/digits PATH --license apache-2.0

```python
import jax
from ddpm_jax.interop import diffusers
from ddpm_jax.nets import UNet

net = UNet(channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(), norm_groups=8)
model = diffusers.Model(net, net.init(jax.random.key(0), (8, 8, 1)), image_shape=(8, 8, 1))
diffusers.write("exported", model)
again = diffusers.read("exported")  # again.denoiser() is a Denoiser
```

`ddpm-jax import RUN/checkpoint-500/unet_ema` reads the average that the training scripts of diffusers save.  An
imported network is sampled, evaluated and trained further like any other run.

An exported run loads with `diffusers.DDPMPipeline.from_pretrained(PATH)`.  Its model card holds the recipe, the data,
the scores with their conditions, and the licence.

Weights are exchanged as safetensors, never as pickles.  A setting that the other library does not have is an error
that names it.  Import after export is the identity, bit for bit.  Outputs agree to 2e-6, and a run of 1000 steps from
the same noise to 4e-5 (tests/reference/exchange_reference.py, eight configurations).
"""

from typing import TYPE_CHECKING

from ddpm_jax import lazy_modules

if TYPE_CHECKING:
    from ddpm_jax.interop import diffusers, runs

__all__ = ["diffusers", "runs"]

__getattr__ = lazy_modules(__name__, __all__)
