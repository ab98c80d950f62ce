"""One NIfTI file: its voxels, its grid in the patient, and what is odd about it.

A file is decompressed no further than its own header allows, so that a small file cannot fill the
memory, and to the end of its stream, so that damage shows.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from segmodel.core.grid import RAS_TO_LPS, Grid
from segmodel.sources.base import RejectError
from segmodel.sources.file_errors import reject_lasting_errors
from segmodel.storage import store

MAX_BYTES = 2 * 1024**3
"""Largest size of one file's voxels, uncompressed; the largest MRI volumes take a quarter."""
MAX_FILE_BYTES = MAX_BYTES
"""Largest size of a file as it is stored."""

_HEADER_BYTES = 540
"""Length of the NIfTI-2 header, which is longer than that of NIfTI-1."""
_TRAILING = 4 * 1024**2
"""Bytes after the voxels that a file may hold; it is read to its end, where the checksum is."""
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_SPATIAL_CODES = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}


@dataclass(frozen=True)
class NiftiVolume:
    """A three-dimensional image as its file holds it."""

    voxels: npt.NDArray[Any]
    """Axes as in the file, slope and intercept applied."""
    grid: Grid
    space_code: int
    """sform or qform code of the grid: 1 scanner, 2 aligned to another image, … 0 assumed."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NiftiFile:
    """A file in memory, unpacked and parsed."""

    image: Any
    content_hash: str
    """SHA-256 of the bytes as they are stored."""


def load_nifti(uri: str, *, many_volumes: bool = False) -> NiftiFile:
    """Read one NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`.

    Args:
        uri: of the file.
        many_volumes: whether the fourth axis may hold more than one volume.

    Raises:
        RejectError: the file cannot be used; says why.
        OSError: the store does not give the bytes.
    """
    with reject_lasting_errors(uri):
        size = store.file_size(uri)
        if size > MAX_FILE_BYTES:
            raise RejectError(f"takes {size:,} bytes; more than {MAX_FILE_BYTES:,} are not read")
        content = store.read_bytes(uri)
    unpacked = content
    if content.startswith(b"\x1f\x8b"):
        unpacked = _decompress(content, many_volumes)
    else:
        _expected_bytes(content[:_HEADER_BYTES], many_volumes, len(content))
    return NiftiFile(_parse(unpacked), hashlib.sha256(content).hexdigest())


def volume_of(
    file: NiftiFile, assume_axes: str | None = None, component: int | None = None
) -> NiftiVolume:
    """One volume of a file.

    Args:
        file: from `load_nifti`.
        assume_axes: directions such as `RAS` of the axes, where neither sform nor qform is set.
        component: which volume of a 4-D file is wanted; None if it must hold only one.

    Raises:
        RejectError: there is no such volume, or it cannot be used.
    """
    header = file.image.header
    shape = _volume_shape(header.get_data_shape(), component)
    with np.errstate(invalid="ignore", over="ignore"):  # an affine that is no number is refused
        grid, code, notes = _grid(header, shape, assume_axes)
    data = file.image.dataobj if component is None else file.image.dataobj[..., component]
    voxels = np.asanyarray(data).reshape(shape)
    _check_finite(voxels)
    return NiftiVolume(voxels, grid, code, notes)


def read_nifti(
    uri: str, assume_axes: str | None = None, component: int | None = None
) -> NiftiVolume:
    """`load_nifti` and `volume_of` in one."""
    file = load_nifti(uri, many_volumes=component is not None)
    return volume_of(file, assume_axes, component)


def _check_finite(voxels: npt.NDArray[Any]) -> None:
    if voxels.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold, it makes infinite
            used = voxels.astype(np.float32) if voxels.dtype.itemsize > 4 else voxels
        wrong = voxels.size - int(np.count_nonzero(np.isfinite(used)))
        if wrong:
            raise RejectError(f"{wrong:,} voxels are NaN or infinite")


def _decompress(content: bytes, many_volumes: bool) -> bytes:
    """Unpack a gzip file as far as its header says, and no further.

    Raises:
        RejectError: it is damaged, cut off, or holds more than its header says.
    """
    header = _inflate(content, _HEADER_BYTES)
    wanted = _expected_bytes(header, many_volumes)
    unpacked = _inflate(content, wanted + 1)  # a limit far above the size costs half the speed
    if len(unpacked) > wanted:
        unpacked = _inflate(content, wanted + _TRAILING)
    if len(unpacked) < wanted:
        raise RejectError(f"ends {wanted - len(unpacked):,} bytes too early: the file is cut off")
    if len(unpacked) == wanted + _TRAILING:
        raise RejectError("holds more than its header says")
    return unpacked


def _inflate(content: bytes, limit: int) -> bytes:
    """The first bytes of a gzip file; the checksum is compared where a member ends."""
    from isal import igzip, igzip_lib, isal_zlib

    member = isal_zlib.decompressobj(wbits=isal_zlib.MAX_WBITS + 16)
    try:
        unpacked = bytes(member.decompress(content, limit))
        if len(unpacked) < limit and member.unused_data.startswith(b"\x1f\x8b"):
            with igzip.open(io.BytesIO(content)) as stream:  # members that may be many and tiny
                return bytes(stream.read(limit))
    except (OSError, EOFError, cast("type[Exception]", igzip_lib.IsalError)) as error:
        raise RejectError(f"damaged gzip: {error}") from error
    if len(unpacked) < limit and not member.eof:
        raise RejectError("damaged gzip: the file is cut off")
    return unpacked


def _expected_bytes(header: bytes, many_volumes: bool, found: int | None = None) -> int:
    """Bytes of header and voxels together, as the header says.

    Args:
        header: the first bytes of the file.
        many_volumes: whether the fourth axis may hold more than one volume.
        found: bytes of the whole file, where they are known.
    """
    parsed = _header(header)
    shape, kind = parsed.get_data_shape(), parsed.get_data_dtype()
    if not shape or min(shape) < 1:
        raise RejectError(f"its header names the size {shape}")
    if kind.kind not in "iuf":
        name = "RGB colours" if kind.names else str(kind)
        raise RejectError(f"holds {name}, not one number a voxel")
    if not many_volumes:
        _volume_shape(shape, None)
    voxels = 1
    for size in shape:
        voxels *= int(size)
    offset = float(parsed["vox_offset"])
    if not len(parsed.binaryblock) <= offset <= MAX_BYTES:
        raise RejectError(f"its header says that the voxels begin at byte {offset:g}")
    wanted = int(offset) + voxels * int(kind.itemsize)
    if wanted > MAX_BYTES:
        sizes = " x ".join(map(str, shape))
        raise RejectError(f"its header claims {sizes} voxels, {wanted:,} bytes")
    if found is not None and found < wanted:
        raise RejectError(f"ends {wanted - found:,} bytes too early: the file is cut off")
    return wanted


def _format(first_bytes: bytes) -> Any:
    """Nibabel's image class for a file with this beginning."""
    from nibabel import Nifti1Image, Nifti2Image

    for kind in (Nifti1Image, Nifti2Image):
        header = kind.header_class
        if header.may_contain_header(first_bytes[: header.template_dtype.itemsize]):
            return kind
    raise RejectError("not a NIfTI file: its first bytes are of another format")


def _header(first_bytes: bytes) -> Any:
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    header = _format(first_bytes).header_class
    try:
        return header(first_bytes[: header.template_dtype.itemsize])
    except (WrapStructError, HeaderDataError, ValueError) as error:
        raise RejectError(f"its header is wrong: {error}") from error


def _parse(content: bytes) -> Any:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        return _format(content[:_HEADER_BYTES]).from_bytes(content)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError) as error:
        raise RejectError(f"cannot be read: {error}") from error


def _volume_shape(shape: tuple[int, ...], component: int | None) -> tuple[int, int, int]:
    """The three sizes of the volume that is wanted of an image of that shape."""
    if len(shape) < 3:
        raise RejectError(f"has {len(shape)} dimensions: no volume")
    further = [size for size in shape[3:] if size != 1]
    if component is None and further:
        raise RejectError(f"a series of {further[0]} volumes over time or direction, not one image")
    if component is not None and (len(shape) != 4 or component >= shape[3]):
        count = shape[3] if len(shape) == 4 else 1
        raise RejectError(
            f"has no image number {component} along its fourth axis: it holds {count}"
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def _grid(
    header: Any, shape: tuple[int, int, int], assume_axes: str | None
) -> tuple[Grid, int, tuple[str, ...]]:
    """The grid, the sform or qform code that gave it, and a note on anything unusual."""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    notes = []
    if sform_code > 0:
        affine, code = header.get_sform(), sform_code
    elif qform_code > 0:
        affine, code = _qform(header), qform_code
    elif assume_axes is not None:
        affine, code = _assumed(header, assume_axes), 0
        notes.append(f"no orientation in the header: {assume_axes} assumed, as --assume-axes says")
    else:
        raise RejectError(
            "neither sform nor qform is set, so left and right are unknown; if you know the "
            "directions of its axes, give them, for example --assume-axes RAS"
        )
    unit = _SPATIAL_CODES.get(int(header["xyzt_units"]) % 8, "unknown")
    if unit == "unknown":
        notes.append("no unit of length in the header: mm assumed")
    elif unit != "mm":
        notes.append(f"lengths converted from {unit} to mm")
    in_mm = np.diag([_MM[unit]] * 3 + [1.0])
    grid = Grid(shape, RAS_TO_LPS @ in_mm @ np.asarray(affine, np.float64))
    _check_affine(grid)
    if sform_code > 0 and qform_code > 0 and not _agrees_with_qform(grid, header, in_mm):
        notes.append("sform and qform disagree: sform taken")
    return grid, code, tuple(notes)


def _agrees_with_qform(grid: Grid, header: Any, in_mm: npt.NDArray[np.float64]) -> bool:
    try:
        other = Grid(grid.shape, RAS_TO_LPS @ in_mm @ _qform(header))
    except RejectError:
        return False
    return grid.agrees_with(other, tolerance_mm=0.1 * min(grid.spacing_mm))


def _qform(header: Any) -> npt.NDArray[np.float64]:
    from nibabel.spatialimages import HeaderDataError

    try:
        return np.asarray(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise RejectError(f"its qform is wrong: {error}") from error


def _assumed(header: Any, axes: str) -> npt.NDArray[np.float64]:
    """The affine for assumed axes, in the header's unit; its origin is the first voxel."""
    from nibabel.orientations import axcodes2ornt

    affine = np.eye(4)
    affine[:3, :3] = 0.0
    spacing = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    for axis, (direction, sign) in enumerate(axcodes2ornt(axes)):
        affine[int(direction), axis] = sign * spacing[axis]
    return affine


def _check_affine(grid: Grid) -> None:
    if not np.isfinite(grid.affine).all() or abs(np.linalg.det(grid.affine[:3, :3])) < 1e-9:
        raise RejectError("its affine is singular or not finite: voxels have no position")
