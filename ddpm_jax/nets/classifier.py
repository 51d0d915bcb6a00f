"""A small convolutional classifier, whose last hidden layer serves as features where Inception is no help.

    3x3 convolutions of stride 2, each with a ReLU, until height or width is 4 or less;
    `width` channels after the first, twice as many after each, at most 4 `width`;
    hidden = relu(dense)    the features        logits = dense(hidden)

Images of 16 pixels or less have a convolution of stride 1 before that, as they have little size to lose.  There is no
max pool: on CPUs its gradient takes ten times as long as all the rest.
"""

from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Images, Key
from ddpm_jax.errors import check_fields, require_int, require_key
from ddpm_jax.nets.init import initialise
from ddpm_jax.nets.layers import conv, dense

SMALLEST, SMALL = 4, 16


@dataclass(frozen=True)
class ConvClassifier:
    """A classifier; the default is right for MNIST in a minute or two of CPU."""

    num_classes: int
    """Classes 0..num_classes-1."""
    width: int = 32
    """Channels of the first convolution."""
    features: int = 64
    """Units of the hidden layer."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("num_classes", self.num_classes, 2)
        require_int("width", self.width, 1)
        require_int("features", self.features, 1)

    def init(self, key: Key, image_shape: tuple[int, int, int]) -> Any:
        """Fresh float32 parameters for images of `image_shape` = (height, width, channels).

        Args:
            key: the key.
            image_shape: (height, width, channels).
        """
        require_key(key)
        batch = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return initialise(key, jax.eval_shape(_Classifier(self).init, key, batch)["params"])

    def apply(self, params: Any, x: Images) -> tuple[Float[Array, "batch {self.features}"], Array]:
        """(features, logits [batch, num_classes]) of images in [-1, 1].

        Args:
            params: the parameters, as `init` returns them.
            x: images in [-1, 1], float32 [batch, height, width, channels].
        """
        return cast(Any, _Classifier(self).apply({"params": params}, x))


class _Classifier(nn.Module):
    spec: ConvClassifier

    @nn.compact
    def __call__(self, x: Images) -> tuple[Array, Array]:
        x = jnp.asarray(x)
        if min(x.shape[1:3]) <= SMALL:
            x = nn.relu(conv(self.spec.width, "stem", "float32")(x))
        layer = 0
        while min(x.shape[1:3]) > SMALLEST:
            channels = min(self.spec.width * 2**layer, 4 * self.spec.width)
            x = nn.relu(conv(channels, f"layer_{layer}", "float32", stride=2)(x))
            layer += 1
        hidden = nn.relu(dense(self.spec.features, "hidden", "float32")(x.reshape(len(x), -1)))
        return hidden, dense(self.spec.num_classes, "classes", "float32")(hidden)
