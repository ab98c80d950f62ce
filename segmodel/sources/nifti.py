"""Patients in NIfTI files, in the layouts of the field or in one that the user describes."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.core.errors import SourceError
from segmodel.core.grid import Grid
from segmodel.core.source_files import SourceFiles, hash_of
from segmodel.sources.base import (
    NONE_KNOWN,
    KnownSeries,
    PatientRecord,
    RecordBuilder,
    RejectError,
    changed,
)
from segmodel.sources.channels import SourceImage, assemble
from segmodel.sources.lgg import CHANNELS
from segmodel.sources.nifti_file import NiftiVolume, read_nifti
from segmodel.sources.nifti_layouts import FLAIR, Case, Image, find_cases
from segmodel.sources.volume import Percentiles, Series, scaling_text, thick_plane, to_tables
from segmodel.storage import store

_SPACES = {0: "assumed", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI 152", 5: "template"}


@dataclass(frozen=True, kw_only=True)
class NiftiOptions:
    """What a user may say about NIfTI files."""

    layout: str = "auto"
    sequences: tuple[str, ...] = ()
    mask: str | None = None
    channels: tuple[str, ...] = CHANNELS
    tumor_labels: tuple[int, ...] | None = None
    """Labels of a mask that are tumor; None for all but 0."""
    percentiles: Percentiles = (0.5, 99.5)
    any_plane: bool = False
    assume_axes: str | None = None


def open_nifti(uri: str, options: NiftiOptions) -> "NiftiSource":
    """Find the cases below a folder.

    Raises:
        SourceError: there is no NIfTI file, or no layout fits.
    """
    if not store.exists(uri):
        raise SourceError(f"{uri}: no such folder")
    paths = [path for path, _ in store.walk(uri)]
    try:
        listing = find_cases(
            paths,
            lambda path: store.read_bytes(store.join(uri, path)),
            options.layout,
            options.sequences,
            options.mask,
            root=uri.rstrip("/").rsplit("/", 1)[-1],
        )
    except SourceError as error:
        raise SourceError(f"{uri}: {error}") from error
    return NiftiSource(uri, options, listing.layout, tuple(listing.cases), listing.unused)


@dataclass(frozen=True)
class NiftiSource:
    """Patients of a folder of NIfTI files; made by `open_nifti`."""

    uri: str
    options: NiftiOptions
    layout: str
    cases: tuple[Case, ...]
    unused: int
    """NIfTI files that belong to no case."""

    @property
    def name(self) -> str:
        """For archive.json."""
        return f"nifti ({self.layout}): {self.uri}"

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""
        return self.options.channels

    @property
    def intensity_scaling(self) -> str:
        """For archive.json."""
        return scaling_text(self.options.percentiles)

    @property
    def settings(self) -> object:
        """All else that decides what is read."""
        return asdict(self.options)

    def patients(self) -> list[str]:
        """Ids of all patients, sorted."""
        if self.unused:
            print(f"{self.uri}: {self.unused} NIfTI files belong to no study and are not used")
        return sorted({case.patient_id for case in self.cases})

    def only(self, *patients: str) -> "NiftiSource":
        """The same source with the cases of some patients alone."""
        return replace(self, cases=tuple(c for c in self.cases if c.patient_id in patients))

    def problems(self) -> list[dict[str, Any]]:
        """None that belongs to no patient."""
        return []

    def place(self, patient_id: str) -> str:
        """The folder, or the file, in which the patient's first image lies."""
        case = next(case for case in self.cases if case.patient_id == patient_id)
        return store.join(self.uri, self._base(case))

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All series of one patient; files that cannot be used are rejects with their reasons."""
        record = RecordBuilder(patient_id)
        for case in self.cases:
            if case.patient_id != patient_id:
                continue
            place = store.join(self.uri, self._base(case))
            try:
                if _series_id(case) in known:
                    self._look_again(case, known[_series_id(case)], record)
                else:
                    self._read_case(case, record)
            except RejectError as error:
                record.reject(place, "series", str(error))
        return record.finish()

    def _look_again(self, case: Case, before: SourceFiles | None, record: RecordBuilder) -> None:
        """A series that is in the archive: a reject, if made from other files now."""
        if before is None:
            return
        files = self._files(case)
        if files.listing == before.listing or self._with_content(case, files) == before:
            return
        place = store.join(self.uri, self._base(case))
        record.reject_row(changed(place, case.patient_id, _difference(before, files)))

    def _files(self, case: Case) -> SourceFiles:
        """The files of a case by name, size and time; their bytes are not read."""
        paths = _paths(case)
        marks = {path: store.file_mark(store.join(self.uri, path)) for path in paths}
        return SourceFiles(len(paths), hash_of(marks), "")

    def _with_content(self, case: Case, files: SourceFiles) -> SourceFiles:
        digests = {
            path: hashlib.sha256(store.read_bytes(store.join(self.uri, path))).hexdigest()
            for path in _paths(case)
        }
        return replace(files, content=hash_of(digests))

    def _base_name(self) -> str:
        """The sequence that gives the grid."""
        return FLAIR if FLAIR in self.channels else self.channels[0]

    def _base(self, case: Case) -> str:
        image = case.images.get(self._base_name())
        return image.path if image else next(iter(case.images.values())).path

    def _read_case(self, case: Case, record: RecordBuilder) -> None:
        base_name = self._base_name()
        if base_name not in case.images:
            found = ", ".join(sorted(case.images))
            raise RejectError(f"no {base_name} in this study, only {found}")
        volume, base = self._image(case.images[base_name])
        turn = volume.grid.turn_to_archive()
        plane = thick_plane(volume.grid, turn)
        if plane and not self.options.any_plane:
            raise RejectError(
                f"its slices are {plane} and {max(volume.grid.spacing_mm):.1f} mm thick; "
                "--any-plane takes them all the same"
            )
        mask, labels, mask_uri = self._mask(case, volume, record)
        series = Series(
            patient_id=case.patient_id,
            series_id=_series_id(case),
            study_id=case.session,
            grid=base.grid,
            channels=assemble(
                self.channels, base_name, base, self._others(case, base_name, record)
            ),
            mask=None if mask is None else turn.apply(mask),
            slice_index=range(1, base.grid.shape[0] + 1),
            slice_uris=[base.source_uri] * base.grid.shape[0],
            source_format="nifti",
            source_grid=volume.grid,
            turn=turn,
            files=self._with_content(case, self._files(case)),
            mask_uri=mask_uri,
            label_voxels=labels,
            notes=(*volume.notes, *case.notes),
            no_volume_reason=_sheared(base.grid),
        )
        record.add(*to_tables(series, self.options.percentiles))

    def _image(self, image: Image) -> tuple[NiftiVolume, SourceImage]:
        """One sequence: as its file has it, and in the archive's orientation."""
        uri = store.join(self.uri, image.path)
        volume = read_nifti(uri, self.options.assume_axes, image.component)
        turn = volume.grid.turn_to_archive()
        voxels = np.ascontiguousarray(turn.apply(volume.voxels), dtype=np.float32)
        space = _SPACES.get(volume.space_code, str(volume.space_code))
        return volume, SourceImage(voxels, volume.grid.turned(turn), uri, image.because, space)

    def _others(
        self, case: Case, base_name: str, record: RecordBuilder
    ) -> dict[str, SourceImage | str]:
        others: dict[str, SourceImage | str] = {}
        for name in self.channels:
            if name == base_name or name not in case.images:
                continue
            try:
                others[name] = self._image(case.images[name])[1]
            except RejectError as error:
                uri = store.join(self.uri, case.images[name].path)
                record.reject(uri, "sequence", str(error))
                others[name] = f"{uri} cannot be used: {error}"
        return others

    def _mask(
        self, case: Case, base: NiftiVolume, record: RecordBuilder
    ) -> tuple[npt.NDArray[np.bool_] | None, dict[int, int], str | None]:
        """The tumor's voxels on the axes of the base's file, the voxels of each label, the file."""
        if case.mask is None:
            return None, {}, None
        uri = store.join(self.uri, case.mask)
        try:
            volume = read_nifti(uri, self.options.assume_axes)
            _check_same_grid(volume.grid, base.grid)
            labels = count_labels(volume.voxels)
        except RejectError as error:
            record.reject(uri, "mask", str(error))
            return None, {}, None
        wanted = self.options.tumor_labels
        tumor = volume.voxels != 0 if wanted is None else np.isin(volume.voxels, wanted)
        return tumor, labels, uri


def count_labels(voxels: npt.NDArray[np.generic]) -> dict[int, int]:
    """Voxels of each label but 0.

    Raises:
        RejectError: a label is no whole number.
    """
    values, counts = np.unique(voxels, return_counts=True)
    whole = np.equal(np.mod(values, 1), 0)
    if not whole.all():
        example = values[~whole][0]
        raise RejectError(f"a mask holds whole numbers, this one {example:g}: is it an image?")
    return {
        int(value): int(count) for value, count in zip(values, counts, strict=True) if value != 0
    }


def _check_same_grid(mask: Grid, image: Grid) -> None:
    """Raise RejectError unless both grids are the same to a tenth of a voxel."""
    if mask.shape != image.shape:
        raise RejectError(f"has {mask.shape} voxels, its image {image.shape}")
    if not mask.agrees_with(image, tolerance_mm=0.1 * min(image.spacing_mm)):
        raise RejectError(
            f"lies elsewhere than its image (axes {mask.axis_codes}, origin "
            f"{_millimetres(mask)}; image {image.axis_codes}, {_millimetres(image)})"
        )


def _millimetres(grid: Grid) -> str:
    return ", ".join(f"{mm:.1f}" for mm in grid.affine[:3, 3])


def _sheared(grid: Grid) -> str | None:
    """Why a stack has no distance between slices, if its axes are not at right angles."""
    degrees = grid.shear_degrees
    return f"sheared by {degrees:.1f} degrees" if degrees > 0.5 else None


def _series_id(case: Case) -> str:
    return case.session or case.patient_id


def _paths(case: Case) -> list[str]:
    """All files of a case, each once."""
    masks = [case.mask] if case.mask else []
    return sorted({image.path for image in case.images.values()} | set(masks))


def _difference(before: SourceFiles, now: SourceFiles) -> str:
    if before.count != now.count:
        return f"{before.count} files then, {now.count} now"
    return f"{before.count} files, then and now, of which some have another name or content"
