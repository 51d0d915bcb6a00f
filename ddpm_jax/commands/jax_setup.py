"""What every command does before JAX starts."""

import os
from pathlib import Path

import jax

from ddpm_jax.check import RunError

CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def set_up_jax(distributed: bool = False) -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is quick; join a cluster.

    Raises RunError where there is no cluster to join.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if distributed:
        join_cluster()


def join_cluster() -> None:
    """Become one of the processes of a cluster, found from its environment or from three variables."""
    address, count, index = (os.environ.get(name) for name in CLUSTER_VARIABLES)
    try:
        jax.distributed.initialize(address, int(count) if count else None, int(index) if index else None)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"--distributed found no cluster to join ({error}); start this under SLURM, Open MPI or Kubernetes, or on "
            f"a TPU pod, or set {', '.join(CLUSTER_VARIABLES)} for each process"
        ) from None
