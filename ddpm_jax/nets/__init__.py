"""The networks that predict: `UNet` for images, `Mlp` for points and other data of few elements.

`Network` is what training and sampling ask of a network, for one of your own.
"""

from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.network import Network
from ddpm_jax.nets.unet import UNet

__all__ = ["Mlp", "Network", "UNet"]
