"""Patients in DICOM files: any tree of files with any names."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from segmodel.core.progress import say
from segmodel.sources.base import (
    NONE_KNOWN,
    KnownSeries,
    ParallelMap,
    PatientRecord,
    RecordBuilder,
    RejectError,
    changed,
)
from segmodel.sources.channels import SourceImage, assemble
from segmodel.sources.dicom_headers import read_headers
from segmodel.sources.dicom_image import BrokenFile, ImageHeader, NoImage
from segmodel.sources.dicom_pixels import read_pixels
from segmodel.sources.dicom_scan import Scan, hash_id, scan
from segmodel.sources.dicom_stacks import Stack, archive_slices, check_size, stacks_of
from segmodel.sources.lgg import CHANNELS
from segmodel.sources.nifti_cases import FLAIR
from segmodel.sources.series_choices import (
    by_series,
    counted_reasons,
    leave_out,
    stack_row,
    study_name,
    to_date,
)
from segmodel.sources.series_rules import SeriesRules, Verdict, choose
from segmodel.sources.volume import Percentiles, Series, scaling_text, thick_plane, to_tables
from segmodel.storage import store

_LEAST_SLICES = 3
"""Fewest slices of a stack that is reformatted to axial: each gives one row or column."""


@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """What a user may say about DICOM files."""

    rules: SeriesRules
    channels: tuple[str, ...] = CHANNELS
    percentiles: Percentiles = (0.5, 99.5)
    any_plane: bool = False
    hash_key: bytes | None = field(default=None, repr=False)
    """Patient ids are replaced by an HMAC with this key; None leaves them as they are."""


@dataclass(frozen=True)
class DicomSource:
    """Patients of a folder of DICOM files.

    Args:
        uri: the folder.
        options: how it is to be read.
        scan: from `scan_folder`.
    """

    uri: str
    options: DicomOptions
    scan: Scan

    @property
    def name(self) -> str:
        """For archive.json."""
        return f"dicom: {self.uri}"

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""
        return self.options.channels

    @property
    def intensity_scaling(self) -> str:
        """For archive.json."""
        return scaling_text(self.options.percentiles)

    def patients(self) -> list[str]:
        """Ids of all patients, sorted; says how many files are not images."""
        passed_over = self.scan.no_images
        if passed_over:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
            say(f"{self.uri}: {sum(passed_over.values())} files are not images ({kinds})")
        return sorted(self.scan.files)

    @property
    def settings(self) -> object:
        """All else that decides what is read; not the key of hashed ids."""
        options = replace(self.options, hash_key=None)
        return {**asdict(options), "hash_ids": self.options.hash_key is not None}

    def restricted_to(self, *patients: str) -> "DicomSource":
        """A copy of the source that holds only these patients."""
        files = {patient: self.scan.files[patient] for patient in patients}
        return replace(self, scan=Scan(files, {}, ()))

    def problems(self) -> list[dict[str, Any]]:
        """Files that no patient could be found for, and folders that cannot be listed."""
        broken = [
            {"source_uri": self._uri_of(file.path), "stage": "header", "reason": file.reason}
            for file in self.scan.broken
        ]
        not_listed = [
            {
                **row,
                "source_uri": self._uri_of(row["source_uri"].removeprefix(self.uri).lstrip("/")),
            }
            for row in self.scan.not_listed
        ]
        return broken + not_listed

    def location_of(self, patient_id: str) -> str:
        """The patient's first file."""
        return self._uri_of(self.scan.files[patient_id][0])

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All studies of one patient; what cannot be used is among the rejects with its reason."""
        record = RecordBuilder(patient_id)
        studies: dict[str, list[ImageHeader]] = defaultdict(list)
        for path in self.scan.files[patient_id]:
            try:
                found = read_headers(self.uri, path)
            except RejectError as error:
                found = BrokenFile(path, patient_id, str(error))
            if isinstance(found, BrokenFile):
                record.reject(self._uri_of(found.path), "header", found.reason)
            elif isinstance(found, NoImage):
                record.reject(self._uri_of(path), "header", "changed while it was being read")
            else:
                for image in found:
                    studies[image.study_uid].append(image)
        for _, images in sorted(studies.items()):
            self._read_study(images, known, record)
        return record.finish()

    def _read_study(
        self, images: Sequence[ImageHeader], known: KnownSeries, record: RecordBuilder
    ) -> None:
        stacks: list[Stack] = []
        rows: list[dict[str, object]] = []
        for series in by_series(images):
            left_out, series = leave_out(series, self.options.rules)
            rows += left_out
            found, problems = stacks_of(series) if series else ([], [])
            stacks += found
            for problem in problems:
                record.reject(self._uri_of(series[0].path), "geometry", problem)
        verdicts = choose(stacks, self.options.rules, self._base_name())
        chosen = {verdict.sequence: verdict for verdict in verdicts if verdict.chosen}
        if self._is_known(chosen, known, record):
            return
        for row in (*rows, *map(stack_row, verdicts)):
            record.choose(row)
        try:
            self._read_series(chosen, record)
        except RejectError as error:
            others = counted_reasons(rows)
            reason = f"{error}; left out: {others}" if others else str(error)
            record.reject(study_name(images[0]), "series", reason)

    def _is_known(
        self, chosen: Mapping[str | None, Verdict], known: KnownSeries, record: RecordBuilder
    ) -> bool:
        """Whether the archive has the study; it is a reject if its images are others now."""
        base = chosen.get(self._base_name())
        if base is None or base.stack.series_id not in known:
            return False
        if known[base.stack.series_id] not in (None, base.stack.source_files()):
            place, difference = self._uri_of(base.stack.first.path), "other images than then"
            record.reject_row(changed(place, record.patient_id, difference))
        return True

    def _read_series(self, chosen: Mapping[str | None, Verdict], record: RecordBuilder) -> None:
        base_name = self._base_name()
        if base_name not in chosen:
            found = ", ".join(sorted(name for name in chosen if name)) or "none of the channels"
            raise RejectError(f"no {base_name} in this study; sequences found: {found}")
        stack = chosen[base_name].stack
        self._check_plane(stack, base_name)
        reorientation = stack.grid.reorientation_to_archive()
        base = self._image(chosen[base_name])
        slices = archive_slices(stack, base.grid.shape[0], reorientation)
        kept = [number for number, _ in slices]
        channels = assemble(self.channels, base_name, base, self._others(chosen, base_name, record))
        first = stack.first
        series = Series(
            patient_id=record.patient_id,
            series_id=stack.series_id,
            files=stack.source_files(),
            study_id=first.study_uid,
            study_date=to_date(first.study_date),
            grid=base.grid,
            channels=tuple(replace(channel, voxels=channel.voxels[kept]) for channel in channels),
            mask=None,
            slice_index=[number + 1 for number in kept],
            slice_uris=[self._slice_uri(image) for _, image in slices],
            sop_instance_uids=[image.sop_instance_uid if image else None for _, image in slices],
            frame_of_reference_uid=first.frame_of_reference,
            source_format="dicom",
            source_grid=stack.grid,
            reorientation=reorientation,
            notes=(stack.part,) if stack.part else (),
            no_volume_reason=stack.no_volume_reason,
        )
        record.add(*to_tables(series, self.options.percentiles))

    def _base_name(self) -> str:
        """The sequence that gives the grid."""
        return FLAIR if FLAIR in self.channels else self.channels[0]

    def _check_plane(self, stack: Stack, name: str) -> None:
        """Raise RejectError unless axial slices can be made of a stack."""
        reorientation = stack.grid.reorientation_to_archive()
        plane = thick_plane(stack.grid, reorientation)
        if plane and not self.options.any_plane:
            raise RejectError(
                f"the slices of its {name} are {plane} and {max(stack.grid.spacing_mm):.1f} mm "
                "thick; give --any-plane to take them"
            )
        if reorientation.axes[0] == 0:
            return
        if len(stack.images) < _LEAST_SLICES and not self.options.any_plane:
            raise RejectError(
                f"its {name} has {len(stack.images)} {stack.grid.plane(0)} slices, too few to "
                "reformat to axial ones; give --any-plane to take them"
            )
        if len(stack.images) < stack.grid.shape[0]:
            raise RejectError(f"slices are missing from its {name}, which is not axial")

    def _others(
        self, chosen: Mapping[str | None, Verdict], base_name: str, record: RecordBuilder
    ) -> dict[str, SourceImage | str]:
        others: dict[str, SourceImage | str] = {}
        for name in self.channels:
            if name == base_name or name not in chosen:
                continue
            stack = chosen[name].stack
            if stack.no_volume_reason and len(stack.images) > 1:
                others[name] = stack.no_volume_reason
                continue
            try:
                others[name] = self._image(chosen[name])
            except RejectError as error:
                record.reject(self._uri_of(stack.first.path), "sequence", str(error))
                others[name] = f"series {stack.first.series_uid} cannot be decoded"
        return others

    def _image(self, verdict: Verdict) -> SourceImage:
        """A chosen stack in the archive's orientation; slices missing between others are 0."""
        stack = verdict.stack
        check_size(stack)
        voxels = read_pixels(self.uri, stack.images)
        if len(voxels) < stack.grid.shape[0]:
            pixels, voxels = voxels, np.zeros(stack.grid.shape, voxels.dtype)
            voxels[list(stack.slice_index)] = pixels
        reorientation = stack.grid.reorientation_to_archive()
        first = stack.first
        return SourceImage(
            np.ascontiguousarray(reorientation.apply(voxels)),
            stack.grid.reoriented(reorientation),
            f"series {first.series_uid}",
            verdict.because,
            first.frame_of_reference or f"no frame of reference, series {first.series_uid}",
            first.series_uid,
            first.description,
        )

    def _slice_uri(self, image: ImageHeader | None) -> str:
        if image is None:
            return self.uri
        frame = "" if image.frame is None else f"#frame={image.frame + 1}"
        return self._uri_of(image.path) + frame

    def _uri_of(self, path: str) -> str:
        """URI of a file. With hashed ids its hash, because folders may be named after patients."""
        if self.options.hash_key is None:
            return store.join(self.uri, path)
        return f"file {hash_id(self.options.hash_key, path)}"


def scan_folder(uri: str, options: DicomOptions, run: ParallelMap = map) -> DicomSource:
    """Read the headers of all files below a folder.

    Args:
        uri: the folder.
        options: for the source.
        run: reads portions of the files, on a cluster say.

    Raises:
        SourceError: there is no DICOM image.
    """
    return DicomSource(uri, options, scan(uri, options.hash_key, run))
