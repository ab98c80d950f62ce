"""Whether a run folder holds a finished segmentation that other jobs may read."""

from segmodel.archive.reader import Archive
from segmodel.core.errors import FingerprintError
from segmodel.runs import run_file, run_folder
from segmodel.runs.run_file import UNFINISHED, Run
from segmodel.storage import store


def check_run(run: str, archive: Archive) -> dict[str, str]:
    """Look at a segmentation before its masks are used.

    Returns:
        Of each patient whether the model has seen it: `train`, `validation`, `no`, or `unknown`
        where its checkpoint does not say.

    Raises:
        FingerprintError: there is no finished segmentation of that archive in the folder.
    """
    values = run_file.read(run)
    found = values.fingerprint.archive_id
    if found != archive.info.archive_id:
        raise FingerprintError(
            f"{run} is a segmentation of another archive (id {found}) than {archive.uri} "
            f"(id {archive.info.archive_id}); give the archive that was segmented"
        )
    if values.finished is None:
        raise FingerprintError(f"{run} is not finished; give its jobs.segment command again first")
    if values.summary == UNFINISHED:
        raise FingerprintError(
            f"{run}: jobs.summarize was interrupted there, or is running; give its command "
            "again first"
        )
    check_masks(run, values)
    volumes = run_folder.read_summary(run, "volumes.parquet", ["patient_id", "seen_in_training"])
    return {row["patient_id"]: row["seen_in_training"] or "unknown" for row in volumes.to_pylist()}


def check_masks(run: str, values: Run) -> None:
    """Whether the masks of a finished run are all there, as they may not be in a copy of it.

    Raises:
        FingerprintError: files are missing; their slices would count as without tumor.
    """
    if values.counts is None:
        return
    there = len(store.list_files(store.join(run, run_folder.MASKS), ".parquet"))
    if there < values.counts.shards:
        raise FingerprintError(
            f"{run}/{run_folder.MASKS} holds {there} files, not {values.counts.shards}: masks are "
            "missing. Copy the folder again, or give its jobs.segment command again first"
        )
