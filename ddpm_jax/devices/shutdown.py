"""How one of several processes ends: with one message and the right exit status, without waiting for dead processes.

Three problems are solved here.  At exit JAX waits minutes for all processes at a barrier, which processes stuck in a
collective with a dead one never reach: a process that fails leaves by os._exit.  A dead process makes JAX's C++ runtime
abort the others: a handler of SIGABRT, in the aborting thread, turns that into a message and status 1.  An error of all
processes should be shown once: they meet at a barrier for a few seconds, and only the first process shows it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn

# Seconds in which processes that fail for the same reason reach the barrier.
MEETING = 10
# Words in the errors of collectives and barriers that mean a lost connection.
LOST = ("gloo", "nccl", "closed by peer", "reset by peer", "socket closed", "unavailable:", "heartbeat", "barrier")
LOST += ("coordination service", "coordinationservice", "deadline_exceeded")

_handler: object = None  # keeps the function alive, to which C holds a pointer
_stderr = 2
_last_words: str | None = None  # the message of a process that is aborted; None once it is shown
_index, _count = 0, 1  # the index of this process, and their number
_status = 1


def joined() -> None:
    """Note that this process is now one of several."""
    # It is private, but jax.process_index() would start the devices, which may fail.
    from jax._src.distributed import global_state

    global _index, _count, _last_words
    _index, _count = global_state.process_id, global_state.num_processes
    _last_words = lost_message("more above")
    sys.excepthook = _uncaught


def lost_message(why: str) -> str:
    """The message of a process that has lost contact with another one."""
    what = f"process {_index} of {_count} lost contact with another one, which ended or cannot be reached ({why})"
    remedy = "start all of them again with the same command, which resumes from the last checkpoint"
    return f"ddpm-jax: {what}; {remedy}"


@contextlib.contextmanager
def joining(last_words: str) -> Iterator[None]:
    """While JAX looks for the other processes: if it aborts, show `last_words` instead of its own messages."""
    global _last_words, _stderr
    _last_words = f"ddpm-jax: {last_words}"
    _catch_aborts()
    sys.stderr.flush()
    _stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(_stderr, 2)
            os.close(_stderr)
            _stderr = 2
            captured.seek(0)
            sys.stderr.write(captured.read().decode(errors="replace"))


def _catch_aborts() -> None:
    """Have SIGABRT call `_aborted` at once, in the thread that aborts: Python's own handlers would come too late."""
    global _handler
    if _handler is None:
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)
        install = ctypes.CDLL(None).signal
        install.restype, install.argtypes = ctypes.c_void_p, [ctypes.c_int, type(_handler)]
        install(signal.SIGABRT, _handler)


def _aborted(_: int) -> None:
    global _last_words
    words, _last_words = _last_words, None
    if words:
        _show_cursor()
        os.write(_stderr, f"{words}\n".encode())
    os._exit(_status)


def lost_contact(error: BaseException | None) -> str | None:
    """The line in which an error or one of its causes says that a process is lost; None if none does."""
    while error is not None:
        text = " ".join(str(error).split())
        if any(sign in text.lower() for sign in LOST) and not isinstance(error, OSError):
            return text[:200]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def leave(status: int, message: str) -> None:
    """End one of several processes with an exit status and a message; returns at once if there is only one."""
    if _count > 1:
        _leave(status, message, sys.exception())


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _count == 1:
        sys.__excepthook__(kind, error, trace)
        return
    interrupted = isinstance(error, KeyboardInterrupt)
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    _leave(130 if interrupted else 1, "ddpm-jax: interrupted" if interrupted else text, error)


def _leave(status: int, message: str, error: BaseException | None) -> NoReturn:
    import jax

    global _last_words, _status
    why, together = lost_contact(error), False
    if why:
        status, message = 1, lost_message(why)
    if _last_words:
        _status, _last_words = status, message  # in case this process is aborted while it waits
    if not why:
        together = _meet(f"ddpm_jax leaves {zlib.crc32(f'{status} {message}'.encode())}")
    silent = together and _index > 0
    words, _last_words = _last_words, None
    _show_cursor()
    if words and not silent:
        print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if together:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    os._exit(status)


def _meet(reason: str) -> bool:
    """Whether every process leaves for this reason within `MEETING` seconds."""
    with contextlib.suppress(Exception):
        from jax._src import distributed  # private, but Orbax and others use it too

        client = distributed.global_state.client
        assert client is not None
        client.wait_at_barrier(reason, MEETING * 1000)
        return True
    return False


def _show_cursor() -> None:
    if os.isatty(_stderr):
        os.write(_stderr, b"\x1b[?25h\n")  # the progress bar has hidden it
