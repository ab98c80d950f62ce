"""The state of a run folder: what is done, what is to do, and which slices are in quarantine.

A shard is done when its masks file is there. A job may be killed between any two steps; the same
command then goes on. The order of writing makes that possible:

1. run.json without `finished`. From now on, volumes.csv of an earlier call is out of date.
2. With `--retry-failed`: the masks files of shards with quarantined slices are deleted, unless all
   those slices are blank. Any later call then re-runs these shards. Their quarantine files stay
   until then, so that no failure is forgotten.
3. Archive files that cannot be opened get a quarantine file. Those that can be opened again lose
   it, and their shards are to do.
4. Each shard: its quarantine file is replaced or deleted, then its masks file is published.
5. volumes, then run.json with `finished`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from segmodel.archive.reader import READ_THREADS, Archive, Shard
from segmodel.core import schema
from segmodel.core.errors import FingerprintError, SegmentationError
from segmodel.runs import run_file
from segmodel.runs.run_file import RUN, UNDECIDED, ArchiveFile, Fingerprint, Run
from segmodel.runs.shard_reader import quarantine_file
from segmodel.runtime.tracking import TRACKED
from segmodel.storage import parquet_recovery, store
from segmodel.storage.output_folder import OutputLayout

MASKS, QUARANTINE = "masks", "quarantine"
THROUGHPUT = "throughput.csv"
LAST_CALL = ("max_quarantined",)
"""Settings that change no mask: those of the last call are kept, so that the page says its exit
code."""
SUMMARIES = tuple(
    f"{name}.{extension}"
    for name in ("changes", "series", "volumes")
    for extension in ("parquet", "csv")
)
"""The tables of a finished run."""
LAYOUT = OutputLayout(
    run_file=RUN,
    key="fingerprint",
    results=(
        MASKS,
        QUARANTINE,
        "postprocessed",
        THROUGHPUT,
        TRACKED,
        *SUMMARIES,
        "report.html",
    ),
)


def claim(output: str, wanted: Fingerprint, archive: Archive, settings: Mapping[str, Any]) -> Run:
    """The run in the folder if it matches this request, or a new one; nothing is written.

    Args:
        output: the run folder.
        wanted: the request's fingerprint. An undecided precision goes with any.
        archive: that is to be segmented.
        settings: for a new run. A run that is there takes over `LAST_CALL` from them.

    Raises:
        ConfigError: the folder is no run, and holds something that a run would replace.
        FingerprintError: the folder was begun with something else.
    """
    if not LAYOUT.holds_run(output):
        return Run(fingerprint=wanted, settings=settings, files={}, started=run_file.now())
    run = run_file.read(output)
    if wanted.precision == UNDECIDED:
        wanted = replace(wanted, precision=run.fingerprint.precision)
    _check_fingerprint(output, run.fingerprint, wanted)
    _check_files(output, run.files, archive)
    of_this_call = {name: value for name, value in settings.items() if name in LAST_CALL}
    return replace(run, settings={**run.settings, **of_this_call})


@dataclass(frozen=True)
class Work:
    """What is to do in a run folder."""

    plan: list[Shard]
    todo: list[Shard]
    retried: list[Shard]
    """Shards of `todo` that are re-run because they have quarantined slices that are not blank."""
    newly_lost: list[str]
    """Archive files that cannot be opened, and are not in quarantine yet."""
    reopened: list[str]
    """Archive files in quarantine that can be opened again."""

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to do in the folder."""
        return bool(self.todo or self.newly_lost or self.reopened)


def find_work(output: str, archive: Archive, shard_slices: int, retry_failed: bool) -> Work:
    """Compare the archive with what lies in the folder.

    Raises:
        FingerprintError: a file lies there that is no shard's.
    """
    plan = archive.shards(shard_slices)
    done = set(store.list_files(store.join(output, MASKS), ".parquet"))
    quarantined = set(store.list_files(store.join(output, QUARANTINE), ".parquet"))
    known = {shard.output_file for shard in plan}
    _check_strays(output, MASKS, done - known)
    _check_strays(
        output,
        QUARANTINE,
        quarantined - known - {*archive.files, *(file.name for file in archive.damaged)},
    )
    again = _may_succeed(output, sorted(done & quarantined)) if retry_failed else set()
    retried = [shard for shard in plan if shard.output_file in again]
    todo = [shard for shard in plan if shard.output_file not in done or shard.output_file in again]
    lost = {file.name for file in archive.damaged if file.slices}
    reopened = quarantined.intersection(archive.files)
    return Work(
        plan, todo, retried, newly_lost=sorted(lost - quarantined), reopened=sorted(reopened)
    )


def find_unpublished(output: str, shards: Sequence[Shard]) -> list[Shard]:
    """Those of some shards whose masks are not in the folder, as seen from here."""
    there = set(store.list_files(store.join(output, MASKS), ".parquet"))
    return [shard for shard in shards if shard.output_file not in there]


def begin(output: str, run: Run, archive: Archive, work: Work) -> Run:
    """Steps 1 to 3 above; returns the run as it is now."""
    run = replace(run, files=_files_of(archive), counts=None, finished=None)
    run_file.write(output, run)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(
            pool.map(
                store.remove,
                (store.join(output, MASKS, shard.output_file) for shard in work.retried),
            )
        )
    for name in work.reopened:
        store.remove(store.join(output, QUARANTINE, name))
    for file in archive.damaged:
        if file.slices:
            store.publish_table(
                store.join(output, QUARANTINE, file.name), quarantine_file(file.slices, file.reason)
            )
    return run


def count_quarantined(output: str, archive: Archive, plan: list[Shard]) -> Counter[str]:
    """Slices in quarantine by stage, those of files that cannot be opened among them."""
    folder = store.join(output, QUARANTINE)
    names = {shard.output_file for shard in plan} | {file.name for file in archive.damaged}

    def stages(name: str) -> Counter[str]:
        return Counter(read_table(store.join(folder, name), ["stage"])["stage"].to_pylist())

    with ThreadPoolExecutor(READ_THREADS) as pool:
        there = names.intersection(store.list_files(folder, ".parquet"))
        return sum(pool.map(stages, there), Counter())


def read_table(uri: str, columns: list[str]) -> pa.Table:
    """Some columns of a file in masks/ or quarantine/.

    Raises:
        SegmentationError: it cannot be read.
    """
    advice = (
        f"delete the files of that name in {MASKS}/ and {QUARANTINE}/ and give the same command "
        "again to segment these slices again"
    )
    return _read_columns(uri, columns, advice)


def read_summary(output: str, name: str, columns: list[str]) -> pa.Table:
    """Some columns of one of a finished run's tables, such as volumes.parquet.

    Raises:
        SegmentationError: it cannot be read.
    """
    advice = "delete it; then give the run's jobs.segment command again, which writes it anew"
    return _read_columns(store.join(output, name), columns, advice)


def _read_columns(uri: str, columns: list[str], advice: str) -> pa.Table:
    try:
        with store.open_parquet(uri) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise SegmentationError(
            f"{uri} cannot be read ({parquet_recovery.one_line(error)}). "
            f"If it is damaged or gone, {advice}"
        ) from error


def _may_succeed(output: str, names: list[str]) -> set[str]:
    """Those of some quarantine files that hold a slice which another attempt may segment."""

    def may_succeed(name: str) -> bool:
        stages = read_table(store.join(output, QUARANTINE, name), ["stage"])["stage"]
        return any(stage != schema.BLANK for stage in stages.to_pylist())

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return {name for name, may in zip(names, pool.map(may_succeed, names), strict=True) if may}


def _check_strays(output: str, folder: str, names: set[str]) -> None:
    if names:
        raise FingerprintError(
            f"{store.join(output, folder)} holds {min(names)}, which is not a shard of this run, "
            "and would be counted with it: move it elsewhere"
        )


def _check_fingerprint(output: str, found: Fingerprint, wanted: Fingerprint) -> None:
    differing = found.differences(wanted)
    if differing:
        changes = "; ".join(
            f"{name} was {before}, is now {now}" for name, (before, now) in differing.items()
        )
        raise FingerprintError(
            f"{output} was begun as run {found.sha256[:12]}, this request is {wanted.sha256[:12]}: "
            f"{changes}. Give another --output, or the settings of that run"
        )


def _files_of(archive: Archive) -> dict[str, ArchiveFile]:
    """Those that can be read."""
    return {
        name: ArchiveFile(slices, archive.sizes[name])
        for name, slices in archive.file_slices().items()
    }


def _check_files(output: str, known: Mapping[str, ArchiveFile], archive: Archive) -> None:
    now_there = _files_of(archive)
    damaged = {file.name: file.reason for file in archive.damaged}
    for name, before in known.items():
        now = now_there.get(name)
        if now == before:
            continue
        change = (
            f"was readable, is not any more: {damaged.get(name, 'it is gone')}"
            if now is None
            else f"had {before}, has now {now}"
        )
        raise FingerprintError(
            f"{output} was begun with another {store.join(archive.uri, name)}: it {change}. "
            "Put the file back as it was, or give another --output"
        )
