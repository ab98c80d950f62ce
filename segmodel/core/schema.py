"""Arrow schemas of every table that the project writes; docs/formats.md explains the columns."""

import pyarrow as pa

FORMAT_VERSION = 2
"""Format version of new archives."""

READ_VERSIONS = (1, 2)
"""Format versions that can be read.

Version 1 has no table of series, no SOP instance UIDs, and spacings in single precision.
"""

_KEYS = [
    pa.field("slice_id", pa.string(), nullable=False),
    pa.field("patient_id", pa.string(), nullable=False),
    pa.field("series_id", pa.string(), nullable=False),
    pa.field("slice_index", pa.int32(), nullable=False),
]
_SHAPE = [
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
]
_SPACING = [
    pa.field("row_spacing_mm", pa.float64()),
    pa.field("column_spacing_mm", pa.float64()),
    pa.field("slice_spacing_mm", pa.float64()),
]

ARCHIVE = pa.schema(
    [
        *_KEYS,
        *_SHAPE,
        pa.field("pixels", pa.binary(), nullable=False),
        pa.field("mask", pa.binary()),
        *_SPACING,
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("sop_instance_uid", pa.string()),
    ]
)
"""One row a slice; sorted by patient, series and slice index."""

EARLIER_TYPES = {field.name: pa.float32() for field in _SPACING}
"""Columns whose type in archives of version 1 differs from today's."""

ADDED_COLUMNS = ("sop_instance_uid",)
"""Columns that archives of version 1 lack; they are read as null."""

INDEX_COLUMNS = [*(field.name for field in (*_KEYS, *_SHAPE, *_SPACING))]
"""The light columns of an archive: everything that planning and counting need."""

ARCHIVE_SERIES = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("series_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string()),
        pa.field("study_date", pa.date32()),
        pa.field("slices", pa.int32(), nullable=False),
        pa.field("affine", pa.list_(pa.float64())),
        pa.field("frame_of_reference_uid", pa.string()),
        pa.field("source_format", pa.string(), nullable=False),
        pa.field("source_shape", pa.list_(pa.int32())),
        pa.field("source_axes", pa.string()),
        pa.field("turn_axes", pa.list_(pa.int32())),
        pa.field("turn_mirrored", pa.list_(pa.bool_())),
        pa.field(
            "channels",
            pa.list_(
                pa.struct(
                    [
                        pa.field("name", pa.string(), nullable=False),
                        pa.field("source_uri", pa.string()),
                        pa.field("source_series_uid", pa.string()),
                        pa.field("description", pa.string()),
                        pa.field("because", pa.string()),
                        pa.field("window_low", pa.float64()),
                        pa.field("window_high", pa.float64()),
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("source_files", pa.int64()),
        pa.field("source_listing", pa.string()),
        pa.field("source_content", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field("label_voxels", pa.map_(pa.int64(), pa.int64())),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("no_volume_reason", pa.string()),
    ]
)
"""One row a series of an archive of version 2: its place in the patient and its source."""

STANDS_IN = "stands in for it"
"""Part of a channel's `because` where its sequence is missing and the channel shows another one."""

SERIES_CHOICES = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("study_date", pa.date32()),
        pa.field("series_uid", pa.string(), nullable=False),
        pa.field("series_number", pa.int64()),
        pa.field("description", pa.string()),
        pa.field("part", pa.string()),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("plane", pa.string()),
        pa.field("spacing_mm", pa.list_(pa.float64())),
        pa.field("sequence", pa.string()),
        pa.field("chosen", pa.bool_(), nullable=False),
        pa.field("because", pa.string(), nullable=False),
    ]
)
"""One row a stack of a DICOM study: which sequence it is, whether it was taken, and why."""

REJECTS = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""What ingest left out: a file, a sequence, a mask or a whole series, as `stage` says."""

MASKS = pa.schema(
    [
        *_KEYS,
        *_SHAPE,
        *_SPACING,
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("tumor_pixels", pa.int64(), nullable=False),
        pa.field("mean_probability", pa.float32()),
        pa.field("probability_sum", pa.float32(), nullable=False),
    ]
)
"""One row a segmented slice; `mask` is a 1-bit PNG of the slice's own height and width."""

QUARANTINE = pa.schema(
    [
        pa.field("slice_id", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("series_id", pa.string()),
        pa.field("slice_index", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One row a slice that could not be segmented."""

BLANK = "blank"
"""Stage of a slice whose pixels are all equal, as above and below a skull-stripped brain."""

_VOLUME = [
    pa.field("study_date", pa.date32()),
    pa.field("slices", pa.int64(), nullable=False),
    pa.field("slices_missing", pa.int64(), nullable=False),
    pa.field("slices_duplicated", pa.int64(), nullable=False),
    pa.field("slices_with_tumor", pa.int64(), nullable=False),
    pa.field("tumor_voxels", pa.int64(), nullable=False),
    pa.field("tumor_volume_mm3", pa.float64()),
    pa.field("tumor_volume_ml", pa.float64()),
    pa.field("volume_note", pa.string()),
    pa.field("largest_component_voxels", pa.int64()),
    pa.field("seen_in_training", pa.string()),
    pa.field("estimated_dice", pa.float64()),
    pa.field("review_score", pa.float64(), nullable=False),
    pa.field("review_reasons", pa.string()),
]

VOLUMES = pa.schema([pa.field("patient_id", pa.string(), nullable=False), *_VOLUME])
"""One row a patient."""

SERIES = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("series_id", pa.string()),
        *_VOLUME,
    ]
)
"""One row a series of a patient; the series is null for slices in quarantine that name none."""

CHANGES = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("interval", pa.string(), nullable=False),
        pa.field("first_date", pa.date32(), nullable=False),
        pa.field("second_date", pa.date32(), nullable=False),
        pa.field("days", pa.int64(), nullable=False),
        pa.field("first_series_id", pa.string()),
        pa.field("second_series_id", pa.string()),
        pa.field("first_volume_ml", pa.float64()),
        pa.field("second_volume_ml", pa.float64()),
        pa.field("difference_ml", pa.float64()),
        pa.field("difference_percent", pa.float64()),
        pa.field("difference_ml_per_month", pa.float64()),
        pa.field("caution", pa.string()),
    ]
)
"""One row a patient and interval between two studies."""
