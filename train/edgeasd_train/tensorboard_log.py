"""The course of a training for TensorBoard, written without torch."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

_FLUSH_S = 5

Rgb = NDArray[np.uint8]
"""A picture (height, width, 3)."""


class TensorBoardLog:
    """Event files in a directory; TensorBoard forgets what an earlier file has of the steps a later one repeats."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: EventFileWriter | None = None

    def scalars(self, figures: Mapping[str, float], *, step: int) -> None:
        """Note figures down, by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(Summary(value=values), step)

    def image(self, name: str, picture: Rgb, *, step: int) -> None:
        """Note a picture down."""
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        height, width, _ = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Write what is left, and stop."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, summary: Summary, step: int) -> None:
        if self._writer is None:
            goes_on = self._directory.is_dir()
            self._writer = EventFileWriter(str(self._directory), flush_secs=_FLUSH_S)
            if goes_on:
                restart = SessionLog(status=SessionLog.SessionStatus.START)
                self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=restart))
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
