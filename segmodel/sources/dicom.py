"""Patients in DICOM files: any tree of files with any names."""

import hashlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from typing import Any

import numpy as np

from segmodel.core.errors import SourceError
from segmodel.core.source_files import SourceFiles, hash_of
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
from segmodel.sources.dicom_headers import BrokenFile, ImageHeader, NoImage, read_headers
from segmodel.sources.dicom_pixels import read_pixels
from segmodel.sources.dicom_stacks import Stack, stacks_of
from segmodel.sources.lgg import CHANNELS
from segmodel.sources.nifti_cases import FLAIR
from segmodel.sources.series_rules import SeriesRules, Verdict, choose
from segmodel.sources.volume import Percentiles, Series, scaling_text, thick_plane, to_tables
from segmodel.storage import store

SCAN_FILES = 256
"""Files whose headers one task reads."""


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
class Scan:
    """What the headers below a source say."""

    files: Mapping[str, tuple[str, ...]]
    """Paths of each patient's images, by the id in the archive."""
    no_images: Mapping[str, int]
    """Files that are no image of a scanner, by kind."""
    broken: tuple[BrokenFile, ...]
    """Files that no patient could be found for."""


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
        """Ids of all patients, sorted."""
        return sorted(self.scan.files)

    @property
    def settings(self) -> object:
        """All else that decides what is read; not the key of hashed ids."""
        options = replace(self.options, hash_key=None)
        return {**asdict(options), "hash_ids": self.options.hash_key is not None}

    def only(self, *patients: str) -> "DicomSource":
        """The same source with no more than it takes to read some patients."""
        files = {patient: self.scan.files[patient] for patient in patients}
        return replace(self, scan=Scan(files, {}, ()))

    def problems(self) -> list[dict[str, Any]]:
        """Files that no patient could be found for."""
        return [
            {"source_uri": self._place(file.path), "stage": "header", "reason": file.reason}
            for file in self.scan.broken
        ]

    def place(self, patient_id: str) -> str:
        """The patient's first file."""
        return self._place(self.scan.files[patient_id][0])

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All studies of one patient; what cannot be used is among the rejects with its reason."""
        record = RecordBuilder(patient_id)
        studies: dict[str, list[ImageHeader]] = defaultdict(list)
        for path in self.scan.files[patient_id]:
            found = read_headers(self.uri, path)
            if isinstance(found, BrokenFile):
                record.reject(self._place(found.path), "header", found.reason)
            elif isinstance(found, NoImage):
                record.reject(self._place(path), "header", "changed while it was being read")
            else:
                for image in found:
                    studies[image.study_uid].append(image)
        for _, images in sorted(studies.items()):
            self._read_study(images, known, record)
        return record.finish()

    def _read_study(
        self, images: Sequence[ImageHeader], known: KnownSeries, record: RecordBuilder
    ) -> None:
        stacks = []
        reasons: Counter[str] = Counter()
        for series in _by_series(images):
            left_out, series = self._leave_out(series)
            for row in left_out:
                record.choose(row)
                reasons[str(row["because"])] += int(str(row["images"]))
            if not series:
                continue
            found, problems = stacks_of(series)
            stacks += found
            for problem in problems:
                record.reject(self._place(series[0].path), "geometry", problem)
        verdicts = choose(stacks, self.options.rules)
        for verdict in verdicts:
            record.choose(_choice(verdict))
        chosen = {verdict.sequence: verdict for verdict in verdicts if verdict.chosen}
        try:
            self._read_series(chosen, known, record)
        except RejectError as error:
            others = ", ".join(f"{count} images: {why}" for why, count in sorted(reasons.items()))
            reason = f"{error}; left out: {others}" if others else str(error)
            record.reject(f"study {images[0].study_uid}", "series", reason)

    def _leave_out(
        self, series: Sequence[ImageHeader]
    ) -> tuple[list[dict[str, object]], list[ImageHeader]]:
        """A row for each reason to leave images of a series out, and the images that are left."""
        reasons: dict[str, list[ImageHeader]] = defaultdict(list)
        kept = []
        for image in series:
            reason = self.options.rules.why_left_out(image)
            if reason is None:
                kept.append(image)
            else:
                reasons[reason].append(image)
        rows = [
            {**_named(images[0]), "images": len(images), "chosen": False, "because": reason}
            for reason, images in reasons.items()
        ]
        return rows, kept

    def _read_series(
        self,
        chosen: Mapping[str | None, Verdict],
        known: KnownSeries,
        record: RecordBuilder,
    ) -> None:
        base_name = FLAIR if FLAIR in self.channels else self.channels[0]
        if base_name not in chosen:
            found = ", ".join(sorted(name for name in chosen if name)) or "none that is wanted"
            raise RejectError(f"no {base_name} in this study; sequences found: {found}")
        stack = chosen[base_name].stack
        series_id = stack.first.series_uid + (f"_{stack.part}" if stack.part else "")
        files = _files(stack)
        if series_id in known:
            if known[series_id] not in (None, files):
                difference = "other images than then"
                record.reject_row(
                    changed(self._place(stack.first.path), record.patient_id, difference)
                )
            return
        turn = stack.grid.turn_to_archive()
        plane = thick_plane(stack.grid, turn)
        if plane and not self.options.any_plane:
            raise RejectError(
                f"the slices of its {base_name} are {plane} and {max(stack.grid.spacing_mm):.1f} mm "
                "thick; --any-plane takes them all the same"
            )
        present = np.array(stack.slice_index)
        if turn.axes[0] != 0 and len(present) < stack.grid.shape[0]:
            raise RejectError(f"slices are missing from its {base_name}, which is not axial")
        base = self._image(chosen[base_name])
        slices = _archive_slices(stack, base.grid.shape[0], turn.axes[0], turn.mirrored[0])
        kept = [number for number, _ in slices]
        channels = assemble(self.channels, base_name, base, self._others(chosen, base_name, record))
        first = stack.first
        series = Series(
            patient_id=record.patient_id,
            series_id=series_id,
            files=files,
            study_id=first.study_uid,
            study_date=_date(first.study_date),
            grid=base.grid,
            channels=tuple(replace(channel, voxels=channel.voxels[kept]) for channel in channels),
            mask=None,
            slice_index=[number + 1 for number in kept],
            slice_uris=[self._slice_uri(image) for _, image in slices],
            sop_instance_uids=[image.sop_instance_uid if image else None for _, image in slices],
            frame_of_reference_uid=first.frame_of_reference,
            source_format="dicom",
            source_grid=stack.grid,
            turn=turn,
            notes=(stack.part,) if stack.part else (),
            no_volume_reason=stack.no_volume_reason,
        )
        record.add(*to_tables(series, self.options.percentiles))

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
                record.reject(self._place(stack.first.path), "sequence", str(error))
                others[name] = f"series {stack.first.series_uid} cannot be decoded"
        return others

    def _image(self, verdict: Verdict) -> SourceImage:
        """A chosen stack in the archive's orientation; slices that are missing between others are 0."""
        stack = verdict.stack
        voxels = np.zeros(stack.grid.shape, np.float32)
        voxels[list(stack.slice_index)] = read_pixels(self.uri, stack.images)
        turn = stack.grid.turn_to_archive()
        first = stack.first
        return SourceImage(
            np.ascontiguousarray(turn.apply(voxels)),
            stack.grid.turned(turn),
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
        return self._place(image.path) + frame

    def _place(self, path: str) -> str:
        """Where a file lies; with hashed ids only its hash, as folders are often named after patients."""
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
    if not store.exists(uri):
        raise SourceError(f"{uri}: no such folder")
    paths = [path for path, _ in store.walk(uri)]
    portions = [
        (uri, paths[start : start + SCAN_FILES]) for start in range(0, len(paths), SCAN_FILES)
    ]
    files: dict[str, list[str]] = defaultdict(list)
    no_images: Counter[str] = Counter()
    broken = []
    for found in run(scan_files, portions):
        for patient, own in found.files.items():
            archive_id = patient if options.hash_key is None else hash_id(options.hash_key, patient)
            files[archive_id].extend(own)
        no_images.update(found.no_images)
        broken += found.broken
    if not files:
        kinds = (
            ", ".join(f"{count} {kind}" for kind, count in no_images.items()) or "no file at all"
        )
        raise SourceError(f"{uri}: no DICOM image below it ({kinds})")
    listed = {patient: tuple(sorted(own)) for patient, own in files.items()}
    return DicomSource(uri, options, Scan(listed, dict(no_images), tuple(broken)))


def scan_files(portion: tuple[str, Sequence[str]]) -> Scan:
    """Sort some files by the patient's id as the header has it.

    Args:
        portion: URI of the source, and paths below it.
    """
    uri, paths = portion
    files: dict[str, list[str]] = defaultdict(list)
    no_images: Counter[str] = Counter()
    broken = []
    for path in paths:
        try:
            found = read_headers(uri, path)
        except OSError as error:
            found = BrokenFile(path, None, f"cannot be read: {error}")
        if isinstance(found, NoImage):
            no_images[found.kind] += 1
        elif isinstance(found, BrokenFile) and found.patient_id is None:
            broken.append(found)
        else:
            patient = found.patient_id if isinstance(found, BrokenFile) else found[0].patient_id
            files[str(patient)].append(path)
    return Scan({patient: tuple(own) for patient, own in files.items()}, no_images, tuple(broken))


def hash_id(key: bytes, text: str) -> str:
    """The same 32 hexadecimal digits for the same text and key, from which neither can be told."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


def _files(stack: Stack) -> SourceFiles:
    """What a series was made from: its images, whatever their files are called."""
    images = hash_of({image.sop_instance_uid: str(image.frame) for image in stack.images})
    return SourceFiles(len(stack.images), images, images)


def _by_series(images: Sequence[ImageHeader]) -> list[list[ImageHeader]]:
    found: dict[str, list[ImageHeader]] = defaultdict(list)
    for image in images:
        found[image.series_uid].append(image)
    return [found[uid] for uid in sorted(found)]


def _archive_slices(
    stack: Stack, count: int, becomes: int, mirrored: bool
) -> list[tuple[int, ImageHeader | None]]:
    """The archive's slices that exist, from 0, and the image that each is, if each is one."""
    if becomes != 0:
        return [(number, None) for number in range(count)]
    last = stack.grid.shape[0] - 1
    placed = zip(stack.slice_index, stack.images, strict=True)
    slices = [(last - number if mirrored else number, image) for number, image in placed]
    return sorted(slices, key=lambda slice_: slice_[0])


def _choice(verdict: Verdict) -> dict[str, object]:
    stack = verdict.stack
    return {
        **_named(stack.first),
        "part": stack.part or None,
        "images": len(stack.images),
        "plane": stack.grid.plane(0),
        "spacing_mm": list(stack.grid.spacing_mm),
        "sequence": verdict.sequence,
        "chosen": verdict.chosen,
        "because": verdict.because,
    }


def _named(image: ImageHeader) -> dict[str, object]:
    """The columns of `schema.SERIES_CHOICES` that say which series an image is of."""
    return {
        "study_id": image.study_uid,
        "study_date": _date(image.study_date),
        "series_uid": image.series_uid,
        "series_number": image.series_number,
        "description": image.description,
    }


def _date(text: str | None) -> date | None:
    """A date as DICOM writes it; None where it is none."""
    try:
        return datetime.strptime(text or "", "%Y%m%d").date()
    except ValueError:
        return None
