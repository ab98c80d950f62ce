"""Patients in NIfTI files, in the layouts of the field or in one that the user describes."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from segmodel.core.errors import SourceError
from segmodel.core.grid import Grid
from segmodel.core.progress import say
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import (
    NONE_KNOWN,
    KnownSeries,
    PatientRecord,
    RecordBuilder,
    RejectError,
    changed,
)
from segmodel.sources.channels import SourceImage, assemble
from segmodel.sources.file_errors import list_source
from segmodel.sources.lgg import CHANNELS
from segmodel.sources.nifti_case_files import CaseFiles
from segmodel.sources.nifti_cases import FLAIR, Case, Image
from segmodel.sources.nifti_file import NiftiVolume, volume_of
from segmodel.sources.nifti_layouts import find_cases
from segmodel.sources.nifti_mask import Mask, tumor_mask
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
    paths, problems = list_source(uri)
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
    return NiftiSource(
        uri, options, listing.layout, tuple(listing.cases), tuple(listing.unused), tuple(problems)
    )


@dataclass(frozen=True)
class NiftiSource:
    """Patients of a folder of NIfTI files; made by `open_nifti`."""

    uri: str
    options: NiftiOptions
    layout: str
    cases: tuple[Case, ...]
    unused: tuple[str, ...] = ()
    """NIfTI files that belong to no case."""
    listing_problems: tuple[dict[str, Any], ...] = ()
    """Rows of `schema.REJECTS` for folders and names that could not be read."""

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
            hint = "" if self.options.sequences else "; --sequences takes files with other names"
            say(
                f"{self.uri}: {len(self.unused)} NIfTI files belong to no study ({self.layout}) "
                f"and are not used; the first is {self.unused[0]!r}{hint}"
            )
        return sorted({case.patient_id for case in self.cases})

    def restricted_to(self, *patients: str) -> "NiftiSource":
        """A copy of the source that holds only these patients."""
        cases = tuple(case for case in self.cases if case.patient_id in patients)
        return replace(self, cases=cases, unused=(), listing_problems=())

    def problems(self) -> list[dict[str, Any]]:
        """Folders that could not be listed, and names that are not UTF-8."""
        return list(self.listing_problems)

    def location_of(self, patient_id: str) -> str:
        """The folder, or the file, in which the patient's first image lies."""
        case = next(case for case in self.cases if case.patient_id == patient_id)
        return store.join(self.uri, self._base(case))

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All series of one patient; files that cannot be used are rejects with their reasons."""
        record = RecordBuilder(patient_id)
        for case in self.cases:
            if case.patient_id != patient_id:
                continue
            uri = store.join(self.uri, self._base(case))
            try:
                if _series_id(case) in known:
                    self._check_unchanged(case, known[_series_id(case)], record)
                else:
                    self._read_case(case, record)
            except RejectError as error:
                record.reject(uri, "series", str(error))
        return record.finish()

    def _check_unchanged(
        self, case: Case, before: SourceFiles | None, record: RecordBuilder
    ) -> None:
        """For a series of the archive: a reject, if the source files have changed."""
        if before is None:
            return
        files = CaseFiles(self.uri, self._paths(case))
        if files.listing() == before.listing or files.content() == before.content:
            return
        uri = store.join(self.uri, self._base(case))
        difference = _difference(before.count, len(self._paths(case)))
        record.reject_row(changed(uri, case.patient_id, difference))

    def _paths(self, case: Case) -> list[str]:
        """The files of a case that are used, each once."""
        wanted = {self._base_name(), *self.channels}
        images = {image.path for name, image in case.images.items() if name in wanted}
        return sorted(images | ({case.mask} if case.mask else set()))

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
        files = CaseFiles(self.uri, self._paths(case))
        listing = files.listing()
        volume, base = self._image(case.images[base_name], files)
        reorientation = volume.grid.reorientation_to_archive()
        plane = thick_plane(volume.grid, reorientation)
        if plane and not self.options.any_plane:
            raise RejectError(
                f"its slices are {plane} and {max(volume.grid.spacing_mm):.1f} mm thick; "
                "give --any-plane to take them"
            )
        mask = self._mask(case, base.grid, files, record)
        others = self._others(case, base_name, files, record)
        if files.listing() != listing:
            raise RejectError("a file of it changed while it was being read")
        series = Series(
            patient_id=case.patient_id,
            series_id=_series_id(case),
            study_id=case.session,
            grid=base.grid,
            channels=assemble(self.channels, base_name, base, others),
            mask=mask.tumor if mask else None,
            slice_index=range(1, base.grid.shape[0] + 1),
            slice_uris=[base.source_uri] * base.grid.shape[0],
            source_format="nifti",
            source_grid=volume.grid,
            reorientation=reorientation,
            files=files.source_files(),
            mask_uri=mask.uri if mask else None,
            label_voxels=mask.label_voxels if mask else {},
            notes=(*volume.notes, *case.notes),
            no_volume_reason=_sheared(base.grid),
        )
        record.add(*to_tables(series, self.options.percentiles))

    def _image(self, image: Image, files: CaseFiles) -> tuple[NiftiVolume, SourceImage]:
        """One sequence: as its file has it, and in the archive's orientation."""
        uri = store.join(self.uri, image.path)
        file = files.load(image.path, many_volumes=image.component is not None)
        volume = volume_of(file, self.options.assume_axes, image.component)
        reorientation = volume.grid.reorientation_to_archive()
        voxels = reorientation.apply(volume.voxels)
        if voxels.dtype.itemsize > 2:
            voxels = voxels.astype(np.float32)
        voxels = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("="))
        space = _SPACES.get(volume.space_code, str(volume.space_code))
        return volume, SourceImage(
            voxels, volume.grid.reoriented(reorientation), uri, image.because, space
        )

    def _others(
        self, case: Case, base_name: str, files: CaseFiles, record: RecordBuilder
    ) -> dict[str, SourceImage | str]:
        others: dict[str, SourceImage | str] = {}
        for name in self.channels:
            if name == base_name or name not in case.images:
                continue
            try:
                others[name] = self._image(case.images[name], files)[1]
            except RejectError as error:
                uri = store.join(self.uri, case.images[name].path)
                record.reject(uri, "sequence", str(error))
                others[name] = f"{uri} cannot be used: {error}"
        return others

    def _mask(
        self, case: Case, image: Grid, files: CaseFiles, record: RecordBuilder
    ) -> Mask | None:
        """The case's mask; None if there is none, or it is a reject."""
        if case.mask is None:
            return None
        uri = store.join(self.uri, case.mask)
        try:
            volume = volume_of(files.load(case.mask), self.options.assume_axes)
            return tumor_mask(volume, image, self.options.tumor_labels, uri)
        except RejectError as error:
            record.reject(uri, "mask", str(error))
            return None


def _sheared(grid: Grid) -> str | None:
    """Why a stack has no distance between slices, if its axes are not at right angles."""
    degrees = grid.shear_degrees
    return f"sheared by {degrees:.1f} degrees" if degrees > 0.5 else None


def _series_id(case: Case) -> str:
    return case.session or case.patient_id


def _difference(before: int, now: int) -> str:
    if before != now:
        return f"{before} files then, {now} now"
    return f"{before} files, then and now, of which some have another name or content"
