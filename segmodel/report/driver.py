"""Finds out what an output folder holds, and writes its report page."""

from collections.abc import Callable
from dataclasses import dataclass

from segmodel.core.errors import ConfigError
from segmodel.report import evaluation_page, segmentation_page, training_page
from segmodel.report.page import REPORT
from segmodel.settings.report import ReportConfig
from segmodel.storage import folder_lock, store


@dataclass(frozen=True)
class PageKind:
    """A kind of output folder that has a page."""

    name: str
    job: str
    """That writes such a folder."""
    write: Callable[[str, bool], None]
    """Takes the folder, and whether the page shows patients' pictures; publishes `REPORT` in it."""


KINDS = {
    "run.json": PageKind("a segmentation", "jobs.segment", segmentation_page.write),
    "evaluation.json": PageKind("an evaluation", "jobs.evaluate", evaluation_page.write),
    "train.json": PageKind("a training", "jobs.train", training_page.write),
    "find_lr.json": PageKind("a range test", "jobs.find_lr", training_page.write),
}
"""The file that marks each kind of folder."""


def write_report(config: ReportConfig) -> str:
    """Write the page of the folder `config.run`.

    Returns:
        Its URI.

    Raises:
        ConfigError: nothing in the folder has a page.
        RequestError: what the folder holds is not finished, or damaged.
        LeaseError: another job works in it.
    """
    folder = config.run
    for marker, kind in KINDS.items():
        if store.exists(store.join(folder, marker)):
            with folder_lock.acquire_lock(folder, "--run"):
                kind.write(folder, not config.without_pictures)
            return store.join(folder, REPORT)
    known = "; ".join(f"{marker} of {kind.name} ({kind.job})" for marker, kind in KINDS.items())
    raise ConfigError(
        f"{folder} holds no results that jobs.report knows. Looked for: {known}. "
        "Give --run the output folder of such a job"
    )
