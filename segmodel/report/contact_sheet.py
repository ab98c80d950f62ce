"""A picture of what a run found: of each patient that a person should look at first, the slice with most tumor."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.reader import Archive, Shard
from segmodel.archive.slice_format import image, shown_channel
from segmodel.core.errors import ArchiveError, SegmodelError
from segmodel.core.mask_png import decode_mask
from segmodel.core.progress import say
from segmodel.core.rounding import ml_text
from segmodel.report import figures
from segmodel.runs import run_folder
from segmodel.storage import store

PATIENTS = 12


def contact_sheet(
    archive: Archive, plan: list[Shard], output: str, volumes: pa.Table, files: dict[str, list[str]]
) -> str | None:
    """Write contact-sheet.png into the run folder, with masks as the model said.

    Args:
        archive: that was segmented.
        plan: its shards.
        output: the run folder.
        volumes: `schema.VOLUMES`.
        files: the files in masks/ of each patient with tumor.

    Returns:
        Its URI; None, and no picture, where there is no tumor.
    """
    first = volumes.sort_by(
        [("review_score", "descending"), ("patient_id", "ascending")]
    ).to_pylist()
    shards = {shard.output_file: shard for shard in plan}
    samples = []
    for row in [row for row in first if row["patient_id"] in files][:PATIENTS]:
        try:
            name, shown = _largest(output, row["patient_id"], files[row["patient_id"]])
            image_hw = _image(archive, shards[name], shown)
        except (
            pa.ArrowException,
            OSError,
            SegmodelError,
        ) as error:  # the results are there: a picture must not fail them
            say(f"contact sheet: without patient {row['patient_id']}: {error}")
            continue
        volume = (
            "volume unknown" if row["tumor_volume_ml"] is None else ml_text(row["tumor_volume_ml"])
        )
        caption = f"{shown['slice_id']}\n{volume}, review score {row['review_score']:.2f}"
        samples.append((caption, image_hw, decode_mask(shown["mask"])))
    if not samples:
        return None
    uri = store.join(output, "contact-sheet.png")
    title = "To look at first: the slice with most tumor"
    figures.sample_slices(samples, title, uri, color=figures.PREDICTION_COLOR)
    return uri


def _largest(output: str, patient_id: str, names: list[str]) -> tuple[str, dict[str, Any]]:
    """The patient's row of masks/ with most tumor, and its file."""
    found = []
    for name in names:
        columns = ["patient_id", "slice_id", "height", "width", "mask", "tumor_pixels"]
        table = run_folder.read_table(store.join(output, "masks", name), columns)
        table = table.filter(pc.equal(table["patient_id"], patient_id))
        row = pc.index(table["tumor_pixels"], pc.max(table["tumor_pixels"])).as_py()
        found.append((name, table.slice(row, 1).to_pylist()[0]))
    return max(found, key=lambda each: int(each[1]["tumor_pixels"]))


def _image(archive: Archive, shard: Shard, row: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The channel of a slice that is shown, (rows, columns); of its shard only the row group with the slice is read."""
    channels = archive.info.channels
    with store.open_parquet(store.join(archive.uri, shard.file)) as file:
        for group in range(shard.first_row_group, shard.stop_row_group):
            place = pc.index(
                file.read_row_group(group, columns=["slice_id"])["slice_id"], row["slice_id"]
            ).as_py()
            if place >= 0:
                pixels = file.read_row_group(group, columns=["pixels"])["pixels"][place]
                return image(pixels, row["height"], row["width"], len(channels))[
                    ..., shown_channel(channels)
                ]
    raise ArchiveError(
        f"{archive.uri}: slice {row['slice_id']!r} is in masks/, but not in {shard.file}; was the archive changed?"
    )
