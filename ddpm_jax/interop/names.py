"""The parameters of `UNet` and of diffusers' `UNet2DModel`: two names and two layouts of the same arrays.

    ours      {"down_0_block_1": {"conv1": {"kernel": [height, width, in, out], "bias": [out]}, ...}, ...}
    theirs    {"down_blocks.0.resnets.1.conv1.weight": [out, in, height, width], ...}

Kernels of dense layers are [in, out] here and [out, in] there; the shortcut of a block, dense here, is a 1x1
convolution there.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import require

__all__ = ["ParamPath", "diffusers_array", "diffusers_name", "from_diffusers", "our_array", "paths", "to_diffusers"]

# Our layers and those of diffusers.  {l} is the level, {m} the level counted from the other end (diffusers numbers the
# way up in the order of execution), {i} the number within the level.
LAYERS = (
    ("conv_in", "conv_in"),
    ("embedding_0", "time_embedding.linear_1"),
    ("embedding_1", "time_embedding.linear_2"),
    ("class_embedding", "class_embedding"),
    ("down_{l}_block_{i}", "down_blocks.{l}.resnets.{i}"),
    ("down_{l}_attention_{i}", "down_blocks.{l}.attentions.{i}"),
    ("down_{l}_downsample", "down_blocks.{l}.downsamplers.0"),
    ("middle_block_{i}", "mid_block.resnets.{i}"),
    ("middle_attention", "mid_block.attentions.0"),
    ("up_{l}_block_{i}", "up_blocks.{m}.resnets.{i}"),
    ("up_{l}_attention_{i}", "up_blocks.{m}.attentions.{i}"),
    ("up_{l}_upsample", "up_blocks.{m}.upsamplers.0"),
    ("norm_out", "conv_norm_out"),
    ("conv_out", "conv_out"),
)
# The parts of a block that have other names, and the arrays of a layer.
PARTS = {
    "embedding": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
ARRAYS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# The names of the attention layers in files from before diffusers 0.15.
OLD_PARTS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

ParamPath = tuple[str, ...]  # ("down_0_block_1", "conv1", "kernel")


def diffusers_name(path: ParamPath, levels: int) -> str:
    """The name of one of our parameters in the state dict of diffusers.

    Args:
        path: the path of the parameter.
        levels: the number of levels of the U-Net.

    Raises:
        ValueError: there is no such layer.
    """
    layer, *parts, array = path
    for ours, theirs in LAYERS:
        match = re.fullmatch(re.sub(r"{(\w)}", r"(?P<\1>\\d+)", ours), layer)
        if match:
            numbers = {name: int(digits) for name, digits in match.groupdict().items()}
            name = theirs.format(**numbers, m=levels - 1 - numbers.get("l", 0))
            return ".".join([name, *(PARTS.get(part, part) for part in parts), ARRAYS[array]])
    raise ValueError(f"no layer of a U-Net is called {layer}")


def diffusers_array(path: ParamPath, value: np.ndarray) -> np.ndarray:
    """A parameter in the layout of torch: OIHW for HWIO, [out, in] for [in, out], a 1x1 convolution for a shortcut.

    Args:
        path: the path of the parameter.
        value: the parameter in our layout.
    """
    if path[-1] != "kernel":
        return value
    value = np.moveaxis(value, (-1, -2), (0, 1))
    return value[:, :, None, None] if path[-2] == "shortcut" else value


def our_array(path: ParamPath, value: np.ndarray) -> np.ndarray:
    """The inverse of `diffusers_array`.

    Args:
        path: the path of the parameter.
        value: the parameter in the layout of torch.
    """
    if path[-1] != "kernel":
        return value
    value = value[:, :, 0, 0] if path[-2] == "shortcut" else value
    return np.moveaxis(value, (0, 1), (-1, -2))


def paths(tree: Any) -> list[tuple[ParamPath, Any]]:
    """Every (path, leaf) of a tree of nested dicts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]


def to_diffusers(params: Any, levels: int) -> dict[str, np.ndarray]:
    """The state dict of the parameters of a U-Net, float32.

    Args:
        params: the tree of parameters.
        levels: the number of levels of the U-Net.
    """
    return {
        diffusers_name(path, levels): diffusers_array(path, np.asarray(leaf, np.float32))
        for path, leaf in paths(params)
    }


def from_diffusers(state: Mapping[str, np.ndarray], shapes: Any, levels: int, where: str) -> Any:
    """The parameters in a state dict, as float32.

    Args:
        state: the state dict.
        shapes: the tree of the parameters, with their shapes.
        levels: the number of levels of the U-Net.
        where: the folder, for messages.

    Raises:
        ValueError: arrays are missing, not known, of another shape or not finite.
    """
    state = {_new_name(name): value for name, value in state.items()}
    wanted = {diffusers_name(path, levels) for path, _ in paths(shapes)}
    for kind, names in (
        ("lacks", wanted - state.keys()),
        ("holds, beyond what its config needs,", state.keys() - wanted),
    ):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise ValueError(f"{where} {kind} {shown}; expected the weights of the UNet2DModel in its config.json")

    def read(keys: Any, leaf: Any) -> np.ndarray:
        path = tuple(key.key for key in keys)
        name = diffusers_name(path, levels)
        value, expected = state[name], diffusers_array(path, np.empty(leaf.shape, np.bool_)).shape
        require(
            f"{where}: shape of {name}", value.shape, value.shape == expected, f"{expected}, as its config.json says"
        )
        value = np.ascontiguousarray(our_array(path, value.astype(np.float32)))
        finite = bool(np.isfinite(value).all())
        require(f"{where}: {name}", "an array with numbers that are not finite", finite, "finite weights")
        return value

    return jax.tree_util.tree_map_with_path(read, shapes)


def _new_name(name: str) -> str:
    """The present name of an array."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in OLD_PARTS:
        return f"{match[1]}.{OLD_PARTS[match[2]]}.{match[3]}"
    return name
