from pathlib import Path

import numpy as np
from PIL import Image

from segmodel.report import figures
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
