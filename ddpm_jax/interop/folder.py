"""The files of a diffusers folder, JSON and safetensors, never pickles; and folders that appear whole or not at all.

    model_index.json
    scheduler/scheduler_config.json
    unet/config.json
    unet/diffusion_pytorch_model.safetensors   or several, which diffusion_pytorch_model.safetensors.index.json lists

In old checkpoints the files of the parts lie in the folder itself.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.errors import RunError, require
from ddpm_jax.storage.paths import RunPath, is_remote, local_copy, remove_tree, require_folder, write_bytes

__all__ = ["appearing", "part_file", "read_json", "read_weights", "require_new", "write_json", "write_weights"]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def part_file(folder: RunPath, part: str, name: str) -> RunPath | None:
    """The file of a part of a pipeline: in the folder of the part, or in the folder itself; None if there is none.

    Args:
        folder: the folder of the pipeline.
        part: the name of the part.
        name: the name of the file.
    """
    places = (folder / part / name, folder / name)
    return next((path for path in places if path.exists()), None)


def read_json(path: RunPath) -> dict[str, Any]:
    """The JSON object in a file.  Raises ValueError if it holds something else."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the checkpoint again") from None
    require(str(path), type(found).__name__, isinstance(found, dict), "a JSON object")
    return found


def read_weights(folder: RunPath, variant: str | None) -> dict[str, np.ndarray]:
    """Every array of the safetensors files in a folder, by name.

    Args:
        folder: the folder.
        variant: the variant of the files, fp16 for diffusion_pytorch_model.fp16.safetensors; None for none.

    Raises:
        FileNotFoundError: a file is missing, or there are pickles only.
        ValueError: a file cannot be read.
    """
    stem = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return _read_safetensors(single)
    ending = f"index.{variant}.json" if variant else "index.json"
    indices = (folder / f"{WEIGHTS}.safetensors.{ending}", folder / f"{stem}.safetensors.index.json")
    index = next((path for path in indices if path.exists()), None)
    if index is None:
        raise FileNotFoundError(_no_weights(folder, single.name))
    weight_map = read_json(index).get("weight_map")
    require(f"{index}: weight_map", type(weight_map).__name__, isinstance(weight_map, dict), "a JSON object")
    assert isinstance(weight_map, dict)
    found: dict[str, np.ndarray] = {}
    for name in sorted({str(value) for value in weight_map.values()}):
        plain = name == os.path.basename(name) and name.endswith(".safetensors")
        require(f"{index}: weight_map", name, plain, "names of .safetensors files beside it")
        found |= _read_safetensors(folder / name)
    missing = sorted(set(weight_map) - found.keys())
    require(str(index), missing, not missing, "all of its arrays in the files that it names; fetch them again")
    return found


def _no_weights(folder: RunPath, wanted: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if pickles and not others:
        return (
            f"{folder} holds its weights as a pickle, {pickles[0]}, which can run any code when it is read; if you "
            "trust it, convert it with diffusers:\n"
            f'  python -c "from diffusers import UNet2DModel as U; '
            f"U.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    variants = f"; it holds {', '.join(others)}: see --variant" if others else ""
    return f"{folder} has neither {wanted} nor an index of several files{variants}"


def _read_safetensors(path: RunPath) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  # it adds bfloat16 to NumPy
    import safetensors

    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; fetch it again")
    try:
        with safetensors.safe_open(str(local_copy(path)), framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except OSError:
        raise
    except Exception as error:  # SafetensorError; TypeError for a dtype that NumPy does not have
        raise ValueError(f"{path} cannot be read as safetensors ({error}); fetch it again") from None


def write_weights(path: Path, state: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, as diffusers does.

    Args:
        path: the file.
        state: the arrays by their names.
    """
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in state.items()}, {"format": "pt"}))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object.

    Args:
        path: the file, whose folder is made if it is missing.
        value: the object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def require_new(folder: RunPath, option: str) -> None:
    """Raise RunError unless a folder can be written and does not exist yet, or is empty.

    Args:
        folder: the folder.
        option: what the user can do otherwise, for the message.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder} exists already and is not overwritten; {option}")
    require_folder(folder, option)


@contextmanager
def appearing(folder: RunPath, last: str, option: str) -> Iterator[Path]:
    """A new local folder to fill; without an error it becomes `folder` at the end, and otherwise it is removed.

    A kill leaves a hidden folder beside `folder`.  An object store renames no folders, so there the files are copied,
    and last the one without which the folder does not count as complete.

    Args:
        folder: the folder that will appear.
        last: the name of the file to copy last.
        option: what the user can do if `folder` exists already, for the message.

    Raises:
        RunError: `folder` exists already, or cannot be written.
    """
    require_new(folder, option)
    if not is_remote(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=None if is_remote(folder) else folder.parent)
    made = Path(hidden) / folder.name
    try:
        made.mkdir()  # inside the hidden folder, which is its owner's alone
        yield made
        require_new(folder, option)
        if is_remote(folder):
            files = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path == made / last)
            for path in files:
                write_bytes(folder / path.relative_to(made).as_posix(), path.read_bytes())
        else:
            os.replace(made, folder)
    finally:
        remove_tree(Path(hidden))
