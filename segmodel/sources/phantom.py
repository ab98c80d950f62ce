"""Makes phantoms: a head with ventricles, noise, and a bright FLAIR lesion known to the voxel.

In FLAIR every lesion voxel is at least `LESION_FLOOR`, and every other voxel at most
`TISSUE_CEILING`: a threshold between the two finds the lesion to the voxel. Patients 4, 8, 12, …
have no lesion.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.ndimage import gaussian_filter

from segmodel.core import schema
from segmodel.core.geometry import Spacing
from segmodel.core.source_files import SourceFiles, hash_of
from segmodel.sources.base import (
    NONE_KNOWN,
    KnownSeries,
    PatientRecord,
    changed,
    plain_series,
    slice_row,
)

FLAIR = 1
LESION_FLOOR = 200
TISSUE_CEILING = 170
HEALTHY_EVERY = 4

Volume = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PhantomSource:
    """Made-up patients.

    Args:
        count: patients.
        slices: slices a patient.
        size: height and width of a slice, pixels.
        seed: the same seed makes the same patients.
        spacing: of every patient; None for 240 mm across a slice and 160 mm along the slices.
    """

    count: int
    slices: int
    size: int
    seed: int
    spacing: Spacing | None = None
    channels: tuple[str, ...] = ("pre-contrast", "FLAIR", "post-contrast")
    intensity_scaling: str = "none: made as 8-bit values"

    @property
    def name(self) -> str:
        """For archive.json."""
        size = f"{self.size}x{self.size}"
        return f"phantom: {self.count} patients of {self.slices} slices, {size}, seed {self.seed}"

    @property
    def settings(self) -> object:
        """All else that decides what is read."""
        return asdict(self)

    def restricted_to(self, *patients: str) -> Self:
        """The source itself: it is small."""
        return self

    def problems(self) -> list[dict[str, Any]]:
        """None that belongs to no patient."""
        return []

    def patients(self) -> list[str]:
        """`PHANTOM_0001`, `PHANTOM_0002` and so on."""
        return [f"PHANTOM_{number:04d}" for number in range(1, self.count + 1)]

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """Make one patient."""
        if patient_id in known:
            return self._check_unchanged(patient_id, known[patient_id])
        number = int(patient_id.rsplit("_", 1)[1])
        pixels_dhwc, mask_dhw = make_patient(
            self.slices, self.size, [self.seed, number], number % HEALTHY_EVERY != 0
        )
        in_plane_mm = 240.0 / self.size
        spacing = self.spacing or Spacing(
            slice_mm=160.0 / self.slices, row_mm=in_plane_mm, column_mm=in_plane_mm
        )
        rows = [
            slice_row(
                slice_id=f"{patient_id}_{index + 1}",
                patient_id=patient_id,
                slice_index=index + 1,
                pixels_hwc=pixels_dhwc[index],
                mask_hw=mask_dhw[index],
                spacing=spacing,
                source_uri=f"{self.location_of(patient_id)}/{index + 1}",
            )
            for index in range(self.slices)
        ]
        slices = pa.Table.from_pylist(rows, schema=schema.ARCHIVE)
        return PatientRecord(
            slices=slices,
            rejects=schema.REJECTS.empty_table(),
            series=plain_series(slices, "phantom", self.channels, self._files()),
        )

    def location_of(self, patient_id: str) -> str:
        """A made-up URI: a phantom has no file."""
        return f"phantom://{self.seed}/{patient_id}"

    def _check_unchanged(self, patient_id: str, before: SourceFiles | None) -> PatientRecord:
        """For a patient of the archive: a reject, if it was made with other settings."""
        rejects = []
        if before not in (None, self._files()):
            difference = "made with another seed, size or slice count"
            rejects.append(changed(self.location_of(patient_id), patient_id, difference))
        return PatientRecord(
            slices=schema.ARCHIVE.empty_table(),
            rejects=pa.Table.from_pylist(rejects, schema=schema.REJECTS),
            series=schema.ARCHIVE_SERIES.empty_table(),
        )

    def _files(self) -> SourceFiles:
        settings = hash_of(
            {"slices": f"{self.slices}", "size": f"{self.size}", "seed": f"{self.seed}"}
        )
        return SourceFiles(self.slices, settings, settings)


def make_patient(
    slices: int, size: int, seed: list[int], lesion: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One head.

    Returns:
        uint8 (slices, size, size, 3): pre-contrast, FLAIR, post-contrast; and the lesion, bool
        (slices, size, size).
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(
        np.linspace(-0.92, 0.92, slices),
        np.linspace(-1, 1, size),
        np.linspace(-1, 1, size),
        indexing="ij",
    )
    x, y = _tilt(x, y, rng.uniform(-0.15, 0.15))
    grid = np.stack([z, y, x]).astype(np.float32)
    brain = _radius(grid, (0, 0, 0), (0.98, 0.74, 0.60)) + 0.03 * _texture(rng, grid, 0.12)
    head = _radius(grid, (0, 0, 0), (1.10, 0.90, 0.75))
    ventricles = _radius(grid, (0.05, 0.0, 0.11), (0.42, 0.34, 0.07)) < 1
    ventricles |= _radius(grid, (0.05, 0.0, -0.11), (0.42, 0.34, 0.07)) < 1
    in_brain, in_head = brain < 1, head < 1
    white = 1 / (1 + np.exp(-6 * (0.72 - brain + 0.35 * _texture(rng, grid, 0.06))))

    pre, flair, post = np.zeros((3, slices, size, size), dtype=np.float32)
    for channel, scalp, skull in ((pre, 150, 22), (flair, 105, 18), (post, 160, 24)):
        channel[in_head] = scalp
        channel[(head < 0.95) & in_head] = skull
    gray_matter = in_brain & ~ventricles
    pre[gray_matter] = (82 + 36 * white)[gray_matter]
    flair[gray_matter] = (118 - 22 * white)[gray_matter]
    post[gray_matter] = (92 + 34 * white)[gray_matter]
    pre[ventricles], flair[ventricles], post[ventricles] = 36, 24, 40

    mask = (
        _lesion(rng, grid, gray_matter, brain) if lesion else np.zeros(grid.shape[1:], dtype=bool)
    )
    bias = 1 + 0.10 * _texture(rng, grid, 0.5)
    channels = [
        gaussian_filter(c, (0, size / 190, size / 190)) * bias + rng.normal(0, 5, c.shape)
        for c in (pre, flair, post)
    ]
    channels[FLAIR] = np.clip(channels[FLAIR], 0, TISSUE_CEILING)
    bright = 222 + 14 * _texture(rng, grid, 0.05) + rng.normal(0, 5, mask.shape)
    channels[FLAIR][mask] = np.clip(bright, LESION_FLOOR, 255)[mask]
    channels[0][mask] *= 0.78
    channels[2][mask] *= 0.9
    pixels = np.clip(np.stack(channels, axis=-1), 0, 255).round().astype(np.uint8)
    return pixels, mask


def _lesion(
    rng: np.random.Generator, grid: Volume, allowed: npt.NDArray[np.bool_], brain: Volume
) -> npt.NDArray[np.bool_]:
    """A lumpy ellipsoid whose centre lies well inside the brain."""
    candidates = np.argwhere(allowed & (brain < 0.72) & (np.abs(grid[0]) < 0.6))
    centre = (
        grid[(slice(None), *candidates[rng.integers(len(candidates))])]
        if len(candidates)
        else np.zeros(3)
    )
    axes = rng.uniform((0.22, 0.13, 0.13), (0.50, 0.30, 0.30))
    radius = _radius(grid, tuple(centre), tuple(axes)) + 0.28 * _texture(rng, grid, 0.09)
    mask: npt.NDArray[np.bool_] = (radius < 1) & allowed
    return mask


def _radius(grid: Volume, centre: tuple[float, ...], axes: tuple[float, ...]) -> Volume:
    """Distance from `centre` in units of the ellipsoid's axes: below 1 inside."""
    scaled = [(grid[axis] - centre[axis]) / axes[axis] for axis in range(3)]
    radius: Volume = np.sqrt(sum(part * part for part in scaled))
    return radius


def _texture(rng: np.random.Generator, grid: Volume, scale: float) -> Volume:
    """Smooth noise of zero mean and about unit size; `scale` is its grain, in fields of view."""
    shape = grid.shape[1:]
    noise = gaussian_filter(rng.normal(size=shape), [scale * extent / 2 for extent in shape])
    smooth: Volume = (noise / max(float(noise.std()), 1e-9)).astype(np.float32).clip(-2.5, 2.5)
    return smooth


def _tilt(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], angle: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
