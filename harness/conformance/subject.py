"""Takes nothing; gives `Subject`: one engine as conformance checks see it, and what they need to know of it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.detect.detections import Detections
from harness.detect.preprocess import Geometry
from harness.model.registry import Precision

Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]


class Session(Protocol):
    """What the checks ask of an open engine; see `harness.engines.base.Session`."""

    def infer(self, images: Images) -> Maps: ...
    def prepare(self, images: Images) -> Callable[[], None]: ...
    def read_back(self) -> Maps | None: ...
    def inspect(self) -> object: ...
    def close(self) -> None: ...


Opening = Callable[[], AbstractContextManager[Session]]


class Remembered:
    """Head maps of whatever images are asked for, made once: a copy, for a session may give views of its buffers."""

    def __init__(self, infer: Callable[[Images], Maps]) -> None:
        self._infer = infer
        self._known: dict[str, Maps] = {}

    def __call__(self, images: Images) -> Maps:
        """Head maps of `images`; not to be written to."""
        key = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        if key not in self._known:
            self._known[key] = {name: values.copy() for name, values in self._infer(images).items()}
        return self._known[key]


@dataclass(frozen=True)
class Subject:
    """One engine file, open.

    session: for a batch of N. images: `[N, 3, H, W]`, normalised, all different. geometries: of these images.
    step: what one level of brightness of 255 is in each channel of `images`, `[3]`.
    shapes: of the outputs, in their order. repeatable: the engine claims the same bits for the same images.
    reopen: opens the same file again. single: opens the engine built for a batch of 1.
    reference: head maps of the model's own fp32 graph. detect: boxes from head maps of `images`, image ids from 0.
    elsewhere: head maps of `images` by an engine file opened in another process.
    device_bytes: of the engine's accelerator in use, by whatever process, None where it does not tell; None itself
        where the engine runs on the host.
    """

    session: Session
    images: Images
    geometries: Sequence[Geometry]
    step: npt.NDArray[np.float32]
    shapes: Mapping[str, tuple[int, ...]]
    precision: Precision
    repeatable: bool
    file: Path
    reopen: Opening
    single: Opening
    reference: Callable[[Images], Maps]
    detect: Callable[[Maps], Detections]
    elsewhere: Callable[[Path], Maps]
    device_bytes: Callable[[], int | None] | None

    @cached_property
    def first(self) -> Remembered:
        """What the session gave for images when it was first asked: what later calls are held to."""
        return Remembered(self.session.infer)
