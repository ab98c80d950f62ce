"""run.json of a segmentation: what its masks were made of and with, and how far it is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from segmodel.core.errors import FingerprintError
from segmodel.storage import store

RUN = "run.json"
UNDECIDED = "auto"
"""Precision of a run that has not begun: it depends on the machine."""
UNFINISHED = "unfinished"
"""Value of `summary` while the tables are computed again: some may be those of earlier settings."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything on which the masks of a run, and their files, depend."""

    weights_sha256: str
    model_settings_sha256: str
    threshold: float
    """A pixel is tumor where its probability is greater."""
    precision: str
    """`bf16` or `fp32`; `UNDECIDED` before the run begins."""
    archive_id: str
    shard_slices: int
    test_time_augmentation: str | None
    code_version: str
    code_sha256: str

    @property
    def sha256(self) -> str:
        """Hash of all fields; runs with the same hash have the same masks."""
        return sha256_of(asdict(self))

    def to_json(self) -> dict[str, Any]:
        """The values, and the hash over them."""
        return {**asdict(self), "sha256": self.sha256}

    def differences(self, other: "Fingerprint") -> dict[str, tuple[Any, Any]]:
        """The fields in which another fingerprint differs: the value here, and there."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class ArchiveFile:
    """A file of the archive, as it was when the run began with it."""

    slices: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.slices} slices in {self.bytes} bytes"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts of a finished run."""

    slices: int
    segmented: int
    quarantined: int
    blank: int
    patients: int
    shards: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of run.json."""

    fingerprint: Fingerprint
    settings: Mapping[str, Any]
    """Of the call that began the run; those of `run_folder.LAST_CALL` of the last call."""
    files: Mapping[str, ArchiveFile]
    """The archive's files by name."""
    counts: Counts | None = None
    """None until the run is finished."""
    slices_per_second: float | None = None
    """Of the last call that segmented something."""
    started: str
    finished: str | None = None
    """None until the volumes are there."""
    summary: Mapping[str, Any] | str | None = None
    """Postprocessing of the tables in the folder, None without any; or `UNFINISHED`."""

    @property
    def finished_counts(self) -> Counts:
        """The counts of a run that is known to be finished.

        Raises:
            ValueError: it is not.
        """
        if self.counts is None:
            raise ValueError("the run is not finished: it has no counts yet")
        return self.counts

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {**asdict(self), "fingerprint": self.fingerprint.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The run that `to_json` described.

        Raises:
            KeyError, TypeError: a value is missing, or is of another kind.
        """
        files = {
            name: ArchiveFile(**_known(ArchiveFile, file)) for name, file in values["files"].items()
        }
        counts = values["counts"]
        return cls(
            fingerprint=Fingerprint(**_known(Fingerprint, values["fingerprint"])),
            settings=dict(values["settings"]),
            files=files,
            counts=None if counts is None else Counts(**_known(Counts, counts)),
            slices_per_second=values["slices_per_second"],
            started=values["started"],
            finished=values["finished"],
            summary=values.get("summary"),  # not there before the first summary
        )


def read(output: str) -> Run:
    """run.json of a run folder.

    Raises:
        FingerprintError: there is none, or it is damaged.
    """
    path = store.join(output, RUN)
    try:
        return Run.from_json(json.loads(store.read_bytes(path)))
    except FileNotFoundError:
        raise FingerprintError(
            f"{output} is not a run folder of jobs.segment: no {RUN} in it"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FingerprintError(
            f"{path} is damaged ({error}): the settings of the masks there are unknown; "
            "give another --output"
        ) from error


def write(output: str, run: Run) -> None:
    """Publish run.json."""
    store.publish_json(store.join(output, RUN), run.to_json())


def now() -> str:
    """The time, for run.json."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_of(values: Mapping[str, Any]) -> str:
    """A hash of values, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields; others are passed over."""
    return {field.name: values[field.name] for field in fields(kind)}
