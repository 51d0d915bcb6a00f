"""The networks that predict: `UNet` for images, `Mlp` for points and other data of few elements."""

from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.unet import UNet

__all__ = ["Mlp", "UNet"]
