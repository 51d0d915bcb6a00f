"""TensorBoard events, written without TensorFlow."""

import importlib
import socket
import struct
import time
import uuid
from functools import cached_property
from typing import Any

from ddpm_jax.storage.append_file import AppendFile, WriteFailures
from ddpm_jax.storage.paths import RunPath


class Events(AppendFile):
    """A file of TensorBoard events: scalars and pictures, each with its step.

    TensorBoard hides events of steps after `start` in files of earlier processes.
    """

    def __init__(self, folder: RunPath, start: int, failures: WriteFailures) -> None:
        self._start = start
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
        super().__init__(folder / name, b"", failures, "without these events until it works again")

    @cached_property
    def _proto(self) -> Any:
        """The kinds of messages; imported for the first event, as the import loads PyTorch if it is there."""
        proto: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        begin = proto.SessionLog(status=proto.SessionLog.START)
        self._record(proto.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._record(proto.Event(wall_time=time.time(), step=self._start + 1, session_log=begin))
        return proto

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One value of a curve."""
        from tensorboardX import summary

        self._add(summary.scalar(name, value), step)

    def add_image(self, name: str, picture: Any, step: int) -> None:
        """A uint8 picture [height, width, channels]."""
        from tensorboardX import summary

        self._add(summary.image(name, picture, dataformats="HWC"), step)

    def _add(self, summary: Any, step: int) -> None:
        self._record(self._proto.Event(wall_time=time.time(), step=step, summary=summary))

    def _record(self, event: Any) -> None:
        """One record of the TFRecord format: its length, its content, and a checksum of each."""
        from tensorboardX.record_writer import masked_crc32c

        content = event.SerializeToString()
        for part in (struct.pack("<Q", len(content)), content):
            self.append(part + struct.pack("<I", masked_crc32c(part)))
