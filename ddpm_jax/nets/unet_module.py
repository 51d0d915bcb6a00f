"""The layers of the U-Net (`unet`), as a Linen module."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion.arrays import Images, Time
from ddpm_jax.nets import blocks
from ddpm_jax.nets.blocks import AttentionBlock, Downsample, Norms, ResBlock, Upsample, norm, silu
from ddpm_jax.nets.embed import timestep_embedding
from ddpm_jax.nets.layers import conv, dense


class UNetModule(nn.Module):
    """The network of a `UNet`."""

    spec: Any
    """The `UNet`."""
    out_channels: int
    training: bool

    @nn.compact
    def __call__(self, z: Images, label: Time, labels: Any) -> Array:
        spec, levels = self.spec, len(self.spec.channel_multipliers)
        remat = nn.remat if spec.remat else lambda block: block
        res_block, attention_block = remat(ResBlock), remat(AttentionBlock)
        embedding = self._embedding(label, labels)
        norms = Norms(spec.norm_groups, spec.min_group_size, spec.norm_epsilon)

        def block(h: Array, level: int, name: str) -> Array:
            features = spec.channels * spec.channel_multipliers[level]
            make = res_block(features, spec.dropout, self.training, norms, spec.adaptive_norm, spec.dtype, name=name)
            return make(h, embedding)

        def attention(h: Array, name: str, norms: Norms | None = norms) -> Array:
            heads = h.shape[-1] // spec.head_channels if spec.head_channels else spec.num_heads
            return attention_block(heads, norms, spec.dtype, name=name)(h)

        h = conv(spec.channels, "conv_in", spec.dtype)(blocks.to_patches(jnp.asarray(z), spec.patch_size))
        skips = [h]
        for level in range(levels):
            for i in range(spec.num_res_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                if h.shape[1] in spec.attention_resolutions:
                    h = attention(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level < levels - 1:
                h = Downsample(spec.pad_both_sides, spec.dtype, name=f"down_{level}_downsample")(h)
                skips.append(h)

        h = block(h, levels - 1, "middle_block_0")
        if spec.middle_attention != "none":
            h = attention(h, "middle_attention", norms if spec.middle_attention == "normalised" else None)
        h = block(h, levels - 1, "middle_block_1")

        for level in reversed(range(levels)):
            for i in range(spec.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_block_{i}")
                if h.shape[1] in spec.attention_resolutions:
                    h = attention(h, f"up_{level}_attention_{i}")
            if level > 0:
                h = Upsample(spec.dtype, name=f"up_{level}_upsample")(h)
        assert not skips

        h = silu(norm(h.shape[-1], "norm_out", "float32", norms)(h))
        h = conv(self.out_channels * spec.patch_size**2, "conv_out", spec.dtype, wide=True)(h)
        return blocks.from_patches(h, spec.patch_size)

    def _embedding(self, label: Time, labels: Any) -> Array:
        """The embedding of the time's label, and of the class, that every block sees: float32 [batch, 4 channels]."""
        spec, size = self.spec, 4 * self.spec.channels
        embedding = timestep_embedding(jnp.asarray(label), spec.channels, spec.frequency_shift, spec.cos_first)
        embedding = dense(size, "embedding_0", spec.dtype, wide=True)(embedding)
        embedding = dense(size, "embedding_1", spec.dtype, wide=True)(silu(embedding))
        if labels is not None:
            assert spec.num_classes is not None
            rows = spec.num_classes + (spec.null_label is not None)
            embedding += nn.Embed(rows, size, dtype=jnp.float32, name="class_embedding")(labels)
        return embedding
