"""The source that a request names; the module of a format is imported only when it is used."""

import os
from collections.abc import Callable

from segmodel.core.errors import ConfigError
from segmodel.core.geometry import Spacing
from segmodel.settings.ingest import IngestConfig
from segmodel.sources.base import ParallelMap, Source

HASH_KEY = "SEGMODEL_HASH_KEY"
"""Environment variable with the key of --hash-ids."""


def open_source(config: IngestConfig, run: ParallelMap = map) -> Source:
    """Look at the source of an ingest.

    Args:
        config: of the ingest.
        run: reads many files at once, on a cluster say.

    Raises:
        SourceError: there is nothing to read.
        ConfigError: --hash-ids without a key, or a file of rules that cannot be used.
    """
    return _SOURCES[config.format](config, run)


def _phantom(config: IngestConfig, run: ParallelMap) -> Source:
    from segmodel.sources.phantom import PhantomSource

    return PhantomSource(
        config.phantom_patients,
        config.phantom_slices,
        config.phantom_size,
        config.seed,
        _spacing(config),
    )


def _lgg(config: IngestConfig, run: ParallelMap) -> Source:
    from segmodel.sources.lgg import LggSource

    return LggSource(config.source or "", _spacing(config))


def _nifti(config: IngestConfig, run: ParallelMap) -> Source:
    from segmodel.sources.nifti import NiftiOptions, open_nifti

    options = NiftiOptions(
        layout=config.layout,
        sequences=tuple(config.sequences),
        mask=config.mask,
        channels=tuple(config.channels),
        tumor_labels=config.labels,
        percentiles=config.percentiles,
        any_plane=config.any_plane,
        assume_axes=config.assume_axes,
    )
    return open_nifti(config.source or "", options)


def _dicom(config: IngestConfig, run: ParallelMap) -> Source:
    from segmodel.sources.dicom import DicomOptions, scan_folder
    from segmodel.sources.series_rules import load_rules

    options = DicomOptions(
        rules=load_rules(config.series_rules),
        channels=tuple(config.channels),
        percentiles=config.percentiles,
        any_plane=config.any_plane,
        hash_key=_hash_key() if config.hash_ids else None,
    )
    return scan_folder(config.source or "", options, run)


_SOURCES: dict[str, Callable[[IngestConfig, ParallelMap], Source]] = {
    "phantom": _phantom,
    "lgg": _lgg,
    "nifti": _nifti,
    "dicom": _dicom,
}


def _spacing(config: IngestConfig) -> Spacing | None:
    if config.spacing_mm is None:
        return None
    row_mm, column_mm, slice_mm = config.spacing_mm
    return Spacing(slice_mm=slice_mm, row_mm=row_mm, column_mm=column_mm)


def _hash_key() -> bytes:
    key = os.environ.get(HASH_KEY, "")
    if len(key) < 16:
        raise ConfigError(
            f"--hash-ids needs a secret of 16 characters or more in {HASH_KEY}, the same every "
            "night; make one with: openssl rand -hex 32"
        )
    return key.encode()
