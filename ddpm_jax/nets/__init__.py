"""What predicts?  `UNet` for images, `Mlp` for points, and the `Network` protocol for a network of your own.

A network is specified by a frozen dataclass.  `init` makes parameters, a plain pytree of float32 arrays.  `bind`
makes the function that the mathematics takes:

    params  = net.init(key, image_shape)
    predict = net.bind(params)                      predict(z_t, t), t in 1..T, unconditional
    predict = net.bind(params, labels)              labels int32 [batch], class-conditional

```python
import jax
from ddpm_jax import Denoiser, nets, schedule

net = nets.UNet(channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(), norm_groups=8)
params = net.init(jax.random.key(0), (8, 8, 1))
model = Denoiser(net.bind(params), schedule.Linear().build())
denoise = jax.jit(lambda z_t: model.denoise(z_t, 500))
x = denoise(jax.random.normal(jax.random.key(1), (4, 8, 8, 1))).x  # the predicted x, float32 [4, 8, 8, 1]
```

`UNet` with its defaults is the network of Ho et al. 2020 for CIFAR-10, with 35,746,307 parameters.  Its fields also
describe the networks of `UNet2DModel` in diffusers.

| wanted | fields of `UNet` |
|---|---|
| class labels, and classifier-free guidance | `num_classes=10, label_dropout=0.1` |
| learned variances | `out_multiplier=2`; the experiment has `variance=LearnedRange()` and `objective=Hybrid()` |
| half the memory of the activations | `dtype="bfloat16"`; parameters, losses and the diffusion stay float32 |
| memory for computation | `remat=True`: each block is computed again in the backward pass |

Any function of (z_t, t) can be a denoiser's `predict`, so an Equinox or NNX module is sampled and measured as it is.
A network that `train` trains derives from `Network`.  Only this package and `features` import Flax Linen.
"""

from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.network import Network
from ddpm_jax.nets.unet import UNet

__all__ = ["Mlp", "Network", "UNet"]
