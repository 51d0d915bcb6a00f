"""The origin of a number: its code, its weights and its data."""

import hashlib
import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.data.fingerprint import fingerprint
from ddpm_jax.data.source import Source, split_of
from ddpm_jax.storage import specs

__all__ = ["commit", "digest", "digest_of_arrays", "of_code", "of_source"]


def digest(value: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_arrays(tree: Any) -> str:
    """The SHA-256 of the paths, shapes, dtypes and bytes of a tree of arrays, each replicated on all devices."""
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
        content.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def of_source(source: Source) -> dict[str, Any]:
    """A description of a data set: its specification, its split, its size and a digest of its content.

    The digest changes with any pixel and any label (`data.fingerprint`); for most sources every example is read.
    """
    found = fingerprint(source, every_example=True)
    content = {"count": found.count, "digest": found.digest[:12]}
    return {"data": specs.described(source), "split": split_of(source), **content}


def of_code() -> dict[str, Any]:
    """The versions of this package and of JAX, the commit (None if it is not known), and the device."""
    device = jax.devices()[0].device_kind
    return {"ddpm_jax": ddpm_jax.__version__, "commit": commit(), "jax": jax.__version__, "device": device}


def commit() -> str | None:
    """The commit of the repository that holds this package, or from which pip installed it; None if not known.

    The text ends with "with changes" if files of the package differ from the commit.
    """
    package = Path(ddpm_jax.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            found = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    # The package may be installed in an environment inside an unrelated repository, which does not track its files.
    if git("ls-files", "--error-unmatch", "__init__.py") is not None and (head := git("rev-parse", "HEAD")):
        return f"{head} with changes" if git("diff", "--quiet", "HEAD", "--", ".") is None else head
    try:
        direct = json.loads(distribution("ddpm-jax").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    return direct.get("vcs_info", {}).get("commit_id")
