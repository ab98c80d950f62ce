"""What the settings of all jobs have in common: checks of URIs, workers and spacings."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segmodel.core.errors import ConfigError

Tracking = Literal["neptune", "tensorboard", "none"]
SIZE_MULTIPLE = 32
"""Both U-Nets halve a slice up to five times: the sides of their input are multiples of this."""


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")
_SUPPORTED = ("s3://", "file://")
_JOB_COPY = re.compile(r"^(?P<copy>.*/runtime_resources/working_dir_files/[^/]+)(/|$)")
"""Where Ray puts its copy of the folder that `ray job submit --working-dir` uploads."""


def absolute_uri(uri: str) -> str:
    """Make a path absolute, for processes with another working directory.

    Raises:
        ConfigError: a URI of a store that is not supported.
    """
    if _SCHEME.match(uri) or "://" in uri:
        bucket = uri.removeprefix("s3://").split("/")[0]
        if not uri.startswith(_SUPPORTED) or "::" in uri or not bucket:
            raise ConfigError(
                f"{uri!r} is neither a path nor a URI that is supported: give a path such as "
                "/data/archive, or s3://bucket/folder (in small letters)"
            )
        return uri.rstrip("/")
    # Path would keep "..".
    return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111


def refuse_job_copy(flag: str, uri: str) -> None:
    """Refuse a folder in Ray's copy of a submitted job's working directory.

    Raises:
        ConfigError: the folder lies there; results would go with the copy when the job ends.
    """
    if _JOB_COPY.match(uri):
        raise ConfigError(
            f"{flag} {uri} lies in Ray's copy of the submitted folder, which is deleted after the "
            "job: give an absolute path on a disk that all nodes share, such as "
            "/data/runs/tonight, or s3://bucket/runs/tonight"
        )


def _refuse_file(flag: str, path: str) -> None:
    """Raise ConfigError if a local path, or a folder above it, is a file."""
    if "://" in path:
        return
    # Path.exists would raise for a folder that this user may not look into.
    there = (each for each in (Path(path), *Path(path).parents) if os.path.exists(each))  # noqa: PTH110
    known = next(there)
    if not known.is_dir():
        raise ConfigError(f"{flag} {path}: {known} is a file; give a folder")


def require(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


class JobConfig:
    """The settings of a job."""

    def _resolve(self, *names: str, file: str | None = None) -> None:
        """Make the URIs of some fields absolute, and refuse those that cannot be right.

        Args:
            names: of the fields; all but `source` must be folders, or not be there yet.
            file: the field that names a file and no folder.

        Raises:
            ConfigError: a URI cannot be right.
        """
        for name in names:
            uri, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            require(uri != "", f"{flag} must name a folder, got an empty text")
            if uri is not None:
                uri = absolute_uri(uri)
                if name != "source":
                    refuse_job_copy(flag, uri)
                    if name != file:
                        _refuse_file(flag, uri)
                object.__setattr__(self, name, uri)

    def _check_device(self, gpu: bool, cpu: bool) -> None:
        require(
            not (gpu and cpu), "--gpu and --cpu contradict each other: give one of them, or neither"
        )


@dataclass(frozen=True, kw_only=True)
class TrackedConfig(JobConfig):
    """The settings of a job whose run is recorded."""

    tracking: Tracking = "neptune"
    """Where metrics are recorded; neptune can send them to your own server."""
    track_patients: bool = False
    """Also send paths, pictures, volumes and console text to the server."""


NOT_TRACKED = ("tracking", "track_patients")
"""Settings that a job which records nothing takes for the sake of a common file, and ignores."""


def check_spacing(spacing_mm: tuple[float, ...]) -> None:
    """Raise ConfigError unless a value of --spacing-mm is three lengths."""
    require(
        len(spacing_mm) == 3 and all(math.isfinite(mm) and mm > 0 for mm in spacing_mm),
        f"--spacing-mm takes three lengths greater than 0, got {spacing_mm}",
    )


def refuse_inputs_folder(output: str, **inputs: str | None) -> None:
    """Refuse an output folder that is a folder which the job reads.

    Args:
        output: folder to write.
        inputs: folders to read, by flag without its dashes.

    Raises:
        ConfigError: two of them are the same.
    """
    for flag, uri in inputs.items():
        require(
            uri is None or uri != output,
            f"--output {output} is the folder of --{flag}: files of two jobs would lie in one "
            "folder. Give another --output",
        )


def parse_workers(text: str) -> tuple[int, int]:
    """(min, max) of `N` or `MIN:MAX`."""
    low, _, high = text.partition(":")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        raise ConfigError(f"--workers takes N or MIN:MAX, got {text!r}") from None
    require(
        1 <= bounds[0] <= bounds[1],
        f"--workers takes N or MIN:MAX with 1 <= MIN <= MAX, got {text!r}",
    )
    return bounds
