"""Segmentation workers that certain slices kill with SIGKILL, slow workers, broken workers."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segmodel.inference.predictor import PendingPrediction
from segmodel.segmentation.worker import SegmentShards

MARK = 77
"""Value of the first pixel of a slice that kills."""
TOO_LARGE = 78
"""The same of a slice that is said not to fit in memory."""


class DeadlySegmentShards(SegmentShards):
    """Dies, without a word, of any batch that holds a slice marked so."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        begin = self.predictor.begin

        def deadly(pixels_nhwc: npt.NDArray[np.uint8]) -> PendingPrediction:
            marks = pixels_nhwc[:, 0, 0, 0]
            if (marks == MARK).any():
                os.kill(os.getpid(), signal.SIGKILL)
            if (marks == TOO_LARGE).any():
                raise MemoryError("too large")
            return begin(pixels_nhwc)

        self.predictor.begin = deadly  # type: ignore[method-assign]


class SlowSegmentShards(SegmentShards):
    """Takes its time, so that something can happen meanwhile."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        begin = self.predictor.begin

        def slowly(pixels_nhwc: npt.NDArray[np.uint8]) -> PendingPrediction:
            time.sleep(0.5)
            return begin(pixels_nhwc)

        self.predictor.begin = slowly  # type: ignore[method-assign]


class ElsewhereSegmentShards(SegmentShards):
    """Publishes on a disk of its own, as on a machine without the shared one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "output": f"{settings['output']}-elsewhere"})


class StillbornSegmentShards(SegmentShards):
    """Dies as soon as its network is there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        os.kill(os.getpid(), signal.SIGKILL)


class ReplacedSegmentShards(SegmentShards):
    """Works while somebody makes another archive in the same folder."""

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        manifest = Path(self.archive) / "archive.json"
        manifest.write_text(
            json.dumps({**json.loads(manifest.read_text()), "archive_id": "another"})
        )
        return super().__call__(batch)


class BrokenGpuSegmentShards(SegmentShards):
    """The first worker has a GPU that fails at its first batch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        begin, mark = self.predictor.begin, Path(f"{settings['output']}-failed")

        def failing(pixels_nhwc: npt.NDArray[np.uint8]) -> PendingPrediction:
            if not mark.exists():
                mark.touch()
                raise torch.AcceleratorError(
                    "CUDA error: uncorrectable ECC error encountered\n"
                    "Compile with TORCH_USE_CUDA_DSA"
                )
            return begin(pixels_nhwc)

        self.predictor.begin = failing  # type: ignore[method-assign]


class LateSegmentShards(SegmentShards):
    """Starts when a training has put another model into the checkpoint's folder."""

    def __init__(self, **settings: Any) -> None:
        fingerprint = replace(settings["fingerprint"], weights_sha256="0" * 64)
        super().__init__(**{**settings, "fingerprint": fingerprint})


class BrokenSegmentShards(SegmentShards):
    """Meets an error that is no slice's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

        def broken(pixels_nhwc: npt.NDArray[np.uint8]) -> PendingPrediction:
            raise RuntimeError("the network is broken")

        self.predictor.begin = broken  # type: ignore[method-assign]
