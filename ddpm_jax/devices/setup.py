"""What every command does before it uses JAX."""

import os
import warnings
from contextlib import ExitStack

import jax

from ddpm_jax.devices import shutdown
from ddpm_jax.devices.cluster import ClusterOptions, find_seat, join
from ddpm_jax.errors import RunError
from ddpm_jax.storage import errors, paths, quiet

_for_the_process = ExitStack()


def set_up_jax(cluster: ClusterOptions | None = None) -> None:
    """Cache compiled programs in the user's cache folder, and join a cluster.

    Args:
        cluster: how to join; None for a process of its own.

    Raises:
        RunError: there is no cluster to join, or JAX has no device.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(paths.cache_folder("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    _for_the_process.enter_context(quiet.quiet_orbax())  # its threads may log an error minutes after the run has ended
    seat = None if cluster is None else find_seat(cluster, os.environ)
    if cluster is not None and seat is not None:
        join(seat, cluster.join_timeout)
    check_devices()
    if jax.process_index() > 0:
        warnings.simplefilter("ignore", UserWarning)  # the first process warns for all


def check_devices() -> None:
    """Raise RunError if JAX has no device."""
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError for a known platform without devices
        if shutdown.lost_contact(error):  # the devices of many processes are listed together
            raise
        platforms, why = jax.config.values["jax_platforms"], errors.error_summary(error)
        remedy = "install what JAX needs for it: pip install -e .[cuda13], .[cuda12] or .[tpu]"
        if platforms:
            fault = f"JAX_PLATFORMS is {platforms!r}, but JAX finds no such device ({why}); unset it"
            raise RunError(f"{fault}, or {remedy}") from None
        fault = f"JAX cannot use the devices of this machine ({why}); repair their driver"
        raise RunError(f"{fault}, or {remedy}; or set JAX_PLATFORMS=cpu") from None
