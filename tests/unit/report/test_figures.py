from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmodel.report import figures, run_figures
from segmodel.report.figures import Sample


def test_slices_of_any_size_and_ids_with_any_letter_are_drawn(tmp_path: Path) -> None:
    sizes = ((1, 32), (32, 1), (1, 1), (32, 32))
    images = [np.zeros(size, np.uint8) for size in sizes]
    masks = [np.eye(*size, dtype=bool) for size in sizes]
    samples = [
        Sample("$A\\frac$", image, mask, mask, "$B$")
        for image, mask in zip(images, masks, strict=True)
    ]
    figures.compared_slices(samples, "Made up", str(tmp_path / "sheet.png"), channel="$T_2")
    captions = [("$C\\frac{$", image, mask) for image, mask in zip(images, masks, strict=True)]
    figures.sample_slices(captions, "Made up", str(tmp_path / "grid.png"))
    for name in ("sheet", "grid"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("values", "shown"),
    [([14_000.0, 15_000.0], "14,500"), ([1.2, 1.3], "1.25"), ([150.4], "150")],
)
def test_a_median_is_written_out(values: list[float], shown: str) -> None:
    drawn = run_figures.histogram(values, "tumor voxels", "", log=True)
    assert f"median {shown}<" in drawn
