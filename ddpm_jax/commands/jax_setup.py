"""What every command does before JAX starts."""

import os
from pathlib import Path

import jax


def set_up_jax() -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is quick."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
