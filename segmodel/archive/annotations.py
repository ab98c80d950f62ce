"""Which slices of an archive have a mask, and where they are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.reader import Archive, Shard
from segmodel.core.errors import ArchiveError


@dataclass(frozen=True)
class SliceRows:
    """Where N annotated slices of an archive are, in its order; known without their pixels."""

    shards: tuple[Shard, ...]
    """The archive's row groups."""
    shard_n: npt.NDArray[np.int32]
    """Number of each slice's row group in `shards`."""
    row_n: npt.NDArray[np.int32]
    """Row of each slice in its row group."""
    patients: tuple[str, ...]
    """Ids, sorted."""
    patient_n: npt.NDArray[np.int32]
    """Number of each slice's patient in `patients`."""

    def __len__(self) -> int:
        return len(self.row_n)

    def of(self, patients: Iterable[str]) -> "SliceRows":
        """The slices of some patients."""
        chosen = tuple(sorted(set(patients)))
        number = np.full(len(self.patients), -1, dtype=np.int32)
        for new, patient in enumerate(chosen):
            number[self.patients.index(patient)] = new
        keep = number[self.patient_n] >= 0
        return SliceRows(
            self.shards, self.shard_n[keep], self.row_n[keep], chosen, number[self.patient_n[keep]]
        )

    def counts(self) -> dict[str, int]:
        """Slices of each patient."""
        return dict(
            zip(
                self.patients,
                np.bincount(self.patient_n, minlength=len(self.patients)).tolist(),
                strict=True,
            )
        )


def find_annotated(archive: Archive, mixed_sizes: bool) -> SliceRows:
    """All slices that have a mask; reads the masks and the light columns, no pixels.

    Args:
        archive: to look through.
        mixed_sizes: accept slices of several sizes.

    Raises:
        ArchiveError: no slice has a mask, a mask is damaged or holds other values than 0 and 1, an
            annotated slice has no patient, or sizes are mixed and must not be.
    """
    shards = tuple(archive.shards(target_slices=1))
    shard_n, row_n, patients = [], [], []
    sizes: dict[tuple[int, int], str] = {}
    for number, table in enumerate(
        archive.read_columns(["slice_id", "patient_id", "height", "width", "mask"])
    ):
        rows = np.flatnonzero(pc.is_valid(table["mask"]).to_numpy())
        annotated = table.take(rows)
        for row in _light(annotated):
            _check_mask(archive.uri, *row)
            sizes.setdefault((row[2], row[3]), row[0])
        shard_n.append(np.full(len(rows), number, dtype=np.int32))
        row_n.append(rows.astype(np.int32))
        patients += annotated["patient_id"].to_pylist()
    if not patients:
        raise ArchiveError(f"{archive.uri}: no slice has a mask; training needs annotated patients")
    if len(sizes) > 1 and not mixed_sizes:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ArchiveError(
            f"{archive.uri}: slices of {len(sizes)} sizes: "
            f"{first!r} is {one[0]}x{one[1]} pixels, {second!r} {other[0]}x{other[1]}; "
            "give --mixed-sizes to scale the longest side of each to --image-size, or ingest them "
            "into one archive per size"
        )
    ids = tuple(sorted(set(patients)))
    number_of = {patient: number for number, patient in enumerate(ids)}
    return SliceRows(
        shards,
        np.concatenate(shard_n),
        np.concatenate(row_n),
        ids,
        np.array([number_of[p] for p in patients], dtype=np.int32),
    )


def _light(annotated: pa.Table) -> Iterator[tuple[str, str, int, int, pa.Scalar]]:
    for slice_id, patient, height, width, mask in zip(
        *(annotated[name] for name in ("slice_id", "patient_id", "height", "width", "mask")),
        strict=True,
    ):
        yield slice_id.as_py(), patient.as_py(), height.as_py(), width.as_py(), mask


def _check_mask(
    uri: str, slice_id: str, patient: str | None, height: int, width: int, mask: pa.Scalar
) -> None:
    values = np.frombuffer(mask.as_buffer(), dtype=np.uint8)
    again = "ingest this patient again"
    if patient is None or height is None or width is None:
        raise ArchiveError(f"{uri}: slice {slice_id!r} has no patient_id, height or width; {again}")
    if len(values) != height * width:
        raise ArchiveError(
            f"{uri}: the mask of slice {slice_id!r} holds {len(values)} bytes, expected "
            f"{height}x{width}; {again}"
        )
    if values.max() > 1:
        raise ArchiveError(
            f"{uri}: the mask of slice {slice_id!r} holds {values.max()}, expected 0 and 1; {again}"
        )
