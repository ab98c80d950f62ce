"""The TensorBoard tracker: series and figures as event files in the output folder."""

import io
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from segmodel.runtime.tracker import GuardedTracker, local_folder

FOLDER = "tensorboard"
"""In the output folder. Each start of a job has a folder of its own in it."""


class TensorBoardTracker(GuardedTracker):
    """Writes series and figures; other values are in `tracked.json`.

    Args:
        kind: of job.
        output: the job's output folder.
    """

    def __init__(self, kind: str, output: str) -> None:
        super().__init__()
        folder, self._finish = local_folder(output, FOLDER)
        self._run = Path(folder, f"{kind}-{datetime.now():%Y%m%d-%H%M%S}")
        self._writer: SummaryWriter | None = None
        self._guard(self._open)

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""
        if self._writer is not None:
            self._guard(self._writer.add_scalar, name, value, int(step))

    def upload(self, name: str, content: bytes, extension: str, *, shows_patients: bool) -> None:
        """Store a figure; other files are in the output folder anyway."""
        if extension == "png":
            self._guard(self._add_figure, name, content)

    def close(self) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._guard(self._writer.close)
        self._guard(self._finish)

    def _open(self) -> None:
        self._writer = SummaryWriter(str(self._run))

    def _add_figure(self, name: str, content: bytes) -> None:
        if self._writer is not None:
            with Image.open(io.BytesIO(content)) as picture:
                pixels_hwc = np.asarray(picture.convert("RGB"))
            self._writer.add_image(name, pixels_hwc, dataformats="HWC")
