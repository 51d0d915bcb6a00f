"""What every command does before JAX starts."""

import os
from pathlib import Path

import jax

from ddpm_jax.commands.cluster import ClusterOptions, find_seat, join


def set_up_jax(cluster: ClusterOptions | None = None, preemptible: bool = False) -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is quick; join a cluster.

    cluster: how, where there is one; unless given this process is alone.  preemptible: whether SIGTERM shall ask a
    process of a cluster for a checkpoint rather than end it.  Raises RunError where there is no cluster to join.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    seat = None if cluster is None else find_seat(cluster, os.environ)
    if cluster is not None and seat is not None:
        join(seat, cluster.join_timeout, preemptible)
