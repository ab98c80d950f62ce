"""Volumes, review and report of a run folder, computed from its masks; can be repeated any time."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from segmodel.analysis import studies, volumes
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, FingerprintError
from segmodel.core.progress import say
from segmodel.report import segmentation_page
from segmodel.runs import finished_run, run_file, run_folder
from segmodel.runs.run_file import UNFINISHED, Run
from segmodel.settings.segment import SegmentConfig, SummarizeConfig
from segmodel.storage import folder_lock


def postprocessing(config: SegmentConfig | SummarizeConfig) -> Postprocessing | None:
    """The postprocessing that the settings ask for; None for none."""
    if not config.keep_largest and config.min_volume_ml is None:
        return None
    return Postprocessing(config.keep_largest, config.min_volume_ml)


def settings_of(how: Postprocessing | None) -> dict[str, Any] | None:
    """For `Run.summary`."""
    return None if how is None else asdict(how)


def write(
    output: str,
    seen_in_training: Callable[[str], str | None],
    how: Postprocessing | None,
    archive: Archive | None,
) -> pa.Table:
    """Write the tables of volumes and series and postprocessed masks.

    Args:
        output: the run folder, all of whose masks are there.
        seen_in_training: whether the model has seen a patient.
        how: the postprocessing.
        archive: that was segmented; without it the dates of studies are those of the tables that
            are there.

    Returns:
        `schema.VOLUMES`.
    """
    of_series = studies.of_run(output) if archive is None else studies.of_archive(archive)
    return volumes.summarise(output, seen_in_training, how, of_series)


def summarize_again(
    run: Run,
    output: str,
    seen_in_training: Callable[[str], str | None],
    how: Postprocessing | None,
    archive: Archive | None,
) -> pa.Table:
    """`write` in the folder of a finished run, with its settings in run.json; then its page."""
    run_file.write(output, replace(run, summary=UNFINISHED))
    found = write(output, seen_in_training, how, archive)
    run_file.write(output, replace(run, summary=settings_of(how)))
    segmentation_page.write(output)
    return found


def summarize(config: SummarizeConfig) -> pa.Table:
    """Compute the tables and the page of a finished run again; returns `schema.VOLUMES`.

    Raises:
        FingerprintError: the folder holds no finished run, or masks are missing.
        LeaseError: another job works in it.
    """
    output = config.segmentation
    run_file.read(output)  # a folder that is no run gets no lock file
    with folder_lock.acquire_lock(output, "--segmentation") as lease:
        run = run_file.read(output)
        if run.finished is None:
            raise FingerprintError(
                f"{output} is not finished; give its jobs.segment command again first"
            )
        finished_run.check_masks(output, run)
        archive = _archive(run)
        seen = _seen(output)
        lease.check()
        return summarize_again(run, output, seen.get, postprocessing(config), archive)


def _seen(output: str) -> dict[str, str | None]:
    """Whether the model has seen each patient, as the run's own table says."""
    table = run_folder.read_summary(output, "volumes.parquet", ["patient_id", "seen_in_training"])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _archive(run: Run) -> Archive | None:
    uri = run.settings["archive"]
    try:
        archive = Archive(uri, skip_damaged=True)
    except ArchiveError as error:
        say(f"without pictures: {error}")
        return None
    if archive.info.archive_id != run.fingerprint.archive_id:
        say(f"without pictures: {uri} is another archive by now")
        return None
    return archive
