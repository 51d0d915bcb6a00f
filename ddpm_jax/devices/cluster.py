"""Joining a cluster: how a process learns that it is one of several of a run, and finds the others.

JAX does the work (jax.distributed).  This file decides whether to join, reports mistakes before anything starts, and
prevents processes that a launcher started together from training as separate copies of one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ddpm_jax.devices import shutdown
from ddpm_jax.errors import RunError, require

ADDRESS, COUNT, INDEX = CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A launcher's variables for (the number of processes, the index of this one).  Ranks of Open MPI under SLURM also
# inherit SLURM's variables, which then count the nodes; so Open MPI's come first.
LAUNCHERS = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
# Seconds of silence after which a process counts as dead.  A C++ thread sends its heartbeats, also during compilation;
# but a machine that is suspended for longer ends the run.
HEARTBEAT_TIMEOUT = 45


@dataclass(frozen=True)
class ClusterOptions:
    """How this process finds the others of its run; by default it is alone unless the environment names others."""

    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Join the processes of a cluster, the same command on each: found from SLURM, Open MPI, Kubernetes or a TPU
    pod, or otherwise from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Not needed if these, SLURM or
    Open MPI name several processes; JAX_NUM_PROCESSES=1 makes processes that were started together independent."""
    coordinator: str | None = None
    """HOST:PORT of process 0, to join by hand; with --num-processes and --process-index."""
    num_processes: int | None = None
    """The number of processes."""
    process_index: int | None = None
    """The index of this process, from 0."""
    join_timeout: int = 300
    """Seconds to wait for the other processes to start."""


@dataclass(frozen=True)
class Seat:
    """The place of a process among the others; JAX finds what is None from the cluster."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_index: int | None = None
    found_by_jax: bool = True
    """Whether JAX may ask the cluster; each task of SLURM or Open MPI then uses one device, that of its local rank."""


def find_seat(options: ClusterOptions, environ: Mapping[str, str]) -> Seat | None:
    """The place of this process, from the flags or otherwise the environment.

    Args:
        options: the flags.
        environ: the environment variables.

    Returns:
        The place; None if the process is alone.

    Raises:
        ValueError: the flags or the variables contradict one another, or are not numbers.
    """
    require("--join-timeout", options.join_timeout, options.join_timeout >= 1, "at least 1 second")
    given = (options.coordinator, options.num_processes, options.process_index)
    names = ("--coordinator", "--num-processes", "--process-index")
    if given == (None, None, None):
        count = _number(environ, COUNT)
        if count is None:
            return _launched(options, environ)
        if count == 1 and not options.distributed:
            return None
        given, names = (environ.get(ADDRESS), count, _number(environ, INDEX)), CLUSTER_VARIABLES
    address, count, index = given
    if address is None or count is None or index is None:
        known = [f"{name} is {value!r}" for name, value in zip(names, given, strict=True) if value is not None]
        missing = [name for name, value in zip(names, given, strict=True) if value is None]
        raise ValueError(f"{', '.join(known)}, which needs {' and '.join(missing)} too")
    host, _, port = address.rpartition(":")
    is_address = bool(host) and port.isdecimal() and 0 < int(port) < 65536
    require(names[0], address, is_address, "HOST:PORT, such as node01:1234")
    require(names[1], count, count >= 1, "at least 1")
    require(names[2], index, 0 <= index < count, f"0 to {count - 1}, as there are {count} processes")
    return Seat(address, count, index, found_by_jax=False)


def _launched(options: ClusterOptions, environ: Mapping[str, str]) -> Seat | None:
    """The place that a launcher gave to this process."""
    address = environ.get(ADDRESS)
    for size, rank in LAUNCHERS:
        count, index = _number(environ, size), _number(environ, rank)
        if count is not None and index is not None and count > 1:
            return Seat(address, count, index)
    return Seat(address) if options.distributed else None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name)
    if not value:
        return None
    require(name, value, value.isdecimal(), "a whole number, 0 or more")
    return int(value)


def join(seat: Seat, timeout: int) -> None:
    """Become one of the processes of a run.

    If the other processes cannot be reached, this process ends with a message.

    Args:
        seat: the place of this process.
        timeout: seconds to wait for the others.

    Raises:
        RunError: there is no cluster to join.
    """
    import jax

    service = jax.config.values["jax_enable_preemption_service"]
    jax.config.update("jax_enable_preemption_service", False)  # until training starts, SIGTERM ends the process
    place = "this process" if seat.process_index is None else f"process {seat.process_index} of {seat.num_processes}"
    where = f"at {seat.coordinator}" if seat.coordinator else "at the address that its cluster gives"
    lonely = (
        f"{place} did not find the others {where} within {timeout} s; check that all of them run, that the address is "
        "one of process 0 which the others can reach, and that its port is free (--join-timeout waits longer)"
    )
    try:
        with shutdown.joining(lonely):
            given = (seat.coordinator, seat.num_processes, seat.process_index)
            detection = None if seat.found_by_jax else "deactivate"
            limits: dict[str, Any] = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
            jax.distributed.initialize(*given, cluster_detection_method=detection, **limits)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        remedy = f"or on a TPU pod, or set {', '.join(CLUSTER_VARIABLES)} for each process"
        what = f"{place} found no cluster to join ({error})"
        raise RunError(f"{what}; start this under SLURM, Open MPI or Kubernetes, {remedy}") from None
    finally:
        jax.config.update("jax_enable_preemption_service", service)
    shutdown.joined()
