"""What every command does before JAX starts."""

import os
import warnings

import jax

from ddpm_jax.devices import shutdown
from ddpm_jax.devices.cluster import ClusterOptions, find_seat, join
from ddpm_jax.errors import RunError
from ddpm_jax.storage.errors import error_summary
from ddpm_jax.storage.paths import cache_folder


def set_up_jax(cluster: ClusterOptions | None = None) -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is quick; join a cluster.

    cluster: how, where there is one; unless given this process is alone.  Raises RunError where there is no cluster
    to join, and where JAX has nothing to run on.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    seat = None if cluster is None else find_seat(cluster, os.environ)
    if cluster is not None and seat is not None:
        join(seat, cluster.join_timeout)
    check_devices()
    if jax.process_index() > 0:
        warnings.simplefilter("ignore", UserWarning)  # the first process says it for all


def check_devices() -> None:
    """Raise RunError where JAX has nothing to run on."""
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError for a platform that is known but not there
        if shutdown.lost_contact(error):  # the devices of many processes are listed together
            raise
        platforms = jax.config.values["jax_platforms"]
        remedy = "install what JAX needs for it: pip install -e .[cuda13], .[cuda12] or .[tpu]"
        if platforms:
            text = f"JAX_PLATFORMS is {platforms!r}, and JAX finds no such device ({error_summary(error)}); unset it to take "
            text += f"what there is, or {remedy}"
        else:
            text = (
                f"JAX cannot use the devices of this machine ({error_summary(error)}); mend their driver, or {remedy}; "
            )
            text += "JAX_PLATFORMS=cpu does without them"
        raise RunError(text) from None
