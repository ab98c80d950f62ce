"""Arrow schemas of every table that the project writes. See the README for the meaning of each column."""

import pyarrow as pa

FORMAT_VERSION = 1
"""Of the archive; a reader refuses any other."""

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
    pa.field("row_spacing_mm", pa.float32()),
    pa.field("column_spacing_mm", pa.float32()),
    pa.field("slice_spacing_mm", pa.float32()),
]

ARCHIVE = pa.schema(
    [
        *_KEYS,
        *_SHAPE,
        pa.field("pixels", pa.binary(), nullable=False),
        pa.field("mask", pa.binary()),
        *_SPACING,
        pa.field("source_uri", pa.string(), nullable=False),
    ]
)
"""One row a slice; sorted by patient, series and slice index."""

INDEX_COLUMNS = [name for name in ARCHIVE.names if name not in ("pixels", "mask", "source_uri")]
"""The light columns of an archive: everything that planning and counting need."""

REJECTS = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""Files that ingest left out."""

MASKS = pa.schema(
    [
        *_KEYS,
        *_SHAPE,
        *_SPACING,
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("tumor_pixels", pa.int64(), nullable=False),
        pa.field("mean_probability", pa.float32()),
        pa.field("uncertainty", pa.float32(), nullable=False),
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
"""Stage of a slice whose pixels are all equal, as those above and below a skull-stripped brain are."""

_VOLUME = [
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
