"""Small archives whose pixels say which slice they are of."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.core import schema
from tests.support.archive_writer import ArchiveWriter


def write_small_archive(
    folder: Path, counts: dict[str, int], *, height: int = 2, width: int = 2, mask_value: int = 1
) -> Archive:
    """Write two channels: slice n has pixels n and 0. Masks are `mask_value`, each 5th missing."""
    with ArchiveWriter(
        str(folder), source="test", channels=("a", "b"), intensity_scaling="none", overwrite=False
    ) as writer:
        number = 0
        for patient, slices in counts.items():
            rows = []
            for index in range(1, slices + 1):
                pixels = np.zeros((height, width, 2), dtype=np.uint8)
                pixels[..., 0] = number % 256
                mask = None if number % 5 == 4 else bytes([mask_value]) * (height * width)
                rows.append(
                    {
                        "slice_id": f"{patient}_{index:03d}",
                        "patient_id": patient,
                        "series_id": patient,
                        "slice_index": index,
                        "height": height,
                        "width": width,
                        "pixels": pixels.tobytes(),
                        "mask": mask,
                        "source_uri": "",
                    }
                )
                number += 1
            writer.append(
                pa.Table.from_pylist(rows, schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    return Archive(str(folder))
