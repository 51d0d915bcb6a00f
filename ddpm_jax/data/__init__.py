"""Data sets: `Digits`, `Arrays`, `Npz`, `Folder` and `Tfds`, or any class of your own; see `ddpm_jax.data.sources`."""

from ddpm_jax.data.deferred import Deferred
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.given import Given
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import Arrays, Digits, Npz
from ddpm_jax.data.tfds import Tfds

__all__ = ["Arrays", "Deferred", "Digits", "Folder", "Given", "Npz", "Source", "Tfds"]
