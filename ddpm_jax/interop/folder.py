"""The files of a diffusers folder: JSON and safetensors, never pickles; and folders that appear whole or not at all.

    model_index.json
    scheduler/scheduler_config.json
    unet/config.json
    unet/diffusion_pytorch_model.safetensors        or pieces that diffusion_pytorch_model.safetensors.index.json lists

The parts of old checkpoints lie in the folder itself, as diffusers reads them too.
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

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def part_file(folder: RunPath, part: str, name: str) -> RunPath | None:
    """The file of a part of a pipeline, in the part's folder or, in old checkpoints, in the folder itself."""
    places = (folder / part / name, folder / name)
    return next((path for path in places if path.exists()), None)


def read_json(path: RunPath) -> dict[str, Any]:
    """The JSON object in a file; ValueError where it holds something else."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the checkpoint again") from None
    require(str(path), type(found).__name__, isinstance(found, dict), "a JSON object")
    return found


def read_weights(folder: RunPath, variant: str | None) -> dict[str, np.ndarray]:
    """Every array of the safetensors files in a folder, by name.

    variant: the fp16 of diffusion_pytorch_model.fp16.safetensors.  Raises FileNotFoundError where there are none, or
    only pickles, and ValueError where one cannot be read.
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
            "trust it, convert it where diffusers is installed with\n"
            f'  python -c "from diffusers import UNet2DModel as U; '
            f"U.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    variants = f"; it holds {', '.join(others)}: see --variant" if others else ""
    return f"{folder} has no {wanted}, nor an index of its pieces{variants}"


def _read_safetensors(path: RunPath) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 once this is imported
    import safetensors

    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; fetch it again")
    try:
        with safetensors.safe_open(str(local_copy(path)), framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except OSError:
        raise
    except Exception as error:  # SafetensorError; TypeError for a dtype that NumPy does not have
        raise ValueError(f"{path} cannot be read as safetensors ({error}); fetch it again") from None


def write_weights(path: Path, state: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, as diffusers does."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, str(path), {"format": "pt"})
    path.chmod(0o666 & ~_umask())  # it is made for its owner alone


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def require_new(folder: RunPath, option: str) -> None:
    """Raise RunError unless there is nothing at `folder` yet, or an empty folder, and it can be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder} is there already and nothing in it is overwritten; {option}")
    require_folder(folder, option)


@contextmanager
def appearing(folder: RunPath, last: str, option: str) -> Iterator[Path]:
    """A new local folder to be filled, which becomes `folder` once that is done, and nothing where it fails.

    A process that is killed before leaves a hidden folder beside it.  In an object store, where nothing is renamed at
    once, the file called `last`, without which the folder is not taken for whole, is written after all others.
    option: what to do where `folder` is there already, which is a RunError.
    """
    require_new(folder, option)
    if not is_remote(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    beside = None if is_remote(folder) else folder.parent
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=beside))
    try:
        made.chmod(0o777 & ~_umask())
        yield made
        require_new(folder, option)
        if is_remote(folder):
            files = sorted((path for path in made.rglob("*") if path.is_file()), key=lambda path: path == made / last)
            for path in files:
                write_bytes(folder / path.relative_to(made).as_posix(), path.read_bytes())
        else:
            os.replace(made, folder)
    finally:
        remove_tree(made)


def _umask() -> int:
    """The mode bits that files of this process do not get."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
