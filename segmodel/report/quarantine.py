"""The quarantine of a run, by stage and reason, with what to do about each stage."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from segmodel.core import schema
from segmodel.runs import run_folder
from segmodel.storage import store

THREADS = 16
REASONS = 50
"""Of a stage, the most frequent ones, that a page lists."""
EXAMPLES = 3

STAGES = {
    "open": (
        "An archive file is missing, is not Parquet, or its columns or slices differ from "
        "archive.json.",
        "Restore a good copy and give the same command again; with --retry-failed if it was "
        "damaged during a run.",
    ),
    "read": (
        "A row group (64 slices or fewer) cannot be decoded, fails its checksum or is on a bad "
        "sector.",
        "Restore a good copy of the same size and give the command with --retry-failed.",
    ),
    "check": (
        "A slice's bytes do not match its size, or its ids are missing.",
        "Look at the scan.",
    ),
    "predict": (
        "A single slice does not fit in memory, or the network's output is NaN or infinite.",
        "Look at the scan; use a machine with more memory and --retry-failed; otherwise another "
        "model and another --output.",
    ),
    "crash": (
        "Two workers died while they processed this slice alone or read its row group, or six "
        "died on earlier slices of its row group.",
        "Ray's logs say why the workers died.",
    ),
    schema.BLANK: (
        "All pixels of a slice are equal.",
        "Nothing: blank slices are counted separately and are not failures.",
    ),
}
"""What happened, and what to do about it."""


@dataclass
class Reason:
    """Slices that were lost for the same reason."""

    text: str
    slices: int = 0
    patients: set[str] = field(default_factory=set)

    @property
    def examples(self) -> str:
        """The first patients, for people."""
        names = sorted(self.patients)
        more = len(names) - EXAMPLES
        return ", ".join(names[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Stage:
    """All that was lost at one stage."""

    name: str
    what: str
    advice: str
    reasons: list[Reason]
    """The most frequent first; `REASONS` at most."""
    slices: int
    other_reasons: int
    """How many are not listed."""

    @property
    def cells(self) -> list[list[str]]:
        """Rows of a table: reason, slices, patients, examples."""
        return [
            [reason.text, f"{reason.slices:,}", f"{len(reason.patients):,}", reason.examples]
            for reason in self.reasons
        ]


def read_stages(output: str) -> list[Stage]:
    """What is in quarantine in a run folder; blank slices come last.

    Raises:
        SegmentationError: a file cannot be read.
    """
    folder = store.join(output, run_folder.QUARANTINE)
    columns = ["patient_id", "stage", "reason"]
    with ThreadPoolExecutor(THREADS) as pool:
        tables = pool.map(
            lambda name: run_folder.read_table(store.join(folder, name), columns),
            store.list_files(folder, ".parquet"),
        )
        return group(
            (row["stage"], row["reason"], row["patient_id"])
            for table in tables
            for row in table.to_pylist()
        )


def group(rows: Iterable[tuple[str, str, str | None]]) -> list[Stage]:
    """Group (stage, reason, patient) of slices by stage, most slices first and blank ones last."""
    found: dict[str, dict[str, Reason]] = {}
    for stage, text, patient in rows:
        reason = found.setdefault(stage, {}).setdefault(text, Reason(text))
        reason.slices += 1
        if patient is not None:
            reason.patients.add(patient)
    stages = []
    for name, reasons in found.items():
        what, advice = STAGES.get(name, ("", ""))
        ordered = sorted(reasons.values(), key=lambda reason: (-reason.slices, reason.text))
        slices = sum(reason.slices for reason in ordered)
        more = max(0, len(ordered) - REASONS)
        stages.append(Stage(name, what, advice, ordered[:REASONS], slices, more))
    return sorted(stages, key=lambda stage: (stage.name == schema.BLANK, -stage.slices))
