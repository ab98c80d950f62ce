"""What a request asks for, resolved once: archive, model, fingerprint and actors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.runs import run_folder
from segmodel.runs.run_file import Fingerprint
from segmodel.runtime.tracking import settings_of
from segmodel.segmentation import archive_facts, summary
from segmodel.segmentation.actors import ActorRequest
from segmodel.segmentation.archive_facts import ArchiveFacts
from segmodel.segmentation.fingerprint import fingerprint
from segmodel.settings.segment import SegmentConfig


@dataclass(frozen=True, kw_only=True)
class SegmentationPlan:
    """A checked request, before its run folder is inspected."""

    archive: Archive
    facts: ArchiveFacts
    card: ModelCard
    checkpoint_folder: str
    output: str
    """The run folder."""
    fingerprint: Fingerprint
    """The one that is asked for; its precision may be undecided."""
    settings: Mapping[str, Any]
    """For run.json."""
    retry_failed: bool
    postprocessing: Postprocessing | None
    max_quarantined: float
    """Share of slices in quarantine above which the exit code is 3."""
    actors: ActorRequest


def resolve(config: SegmentConfig) -> SegmentationPlan:
    """Look at the archive and the model; nothing is written, no network is built.

    Raises:
        RequestError: one of them is not there, is damaged, or they do not fit together; or the run
            folder holds somebody else's files.
    """
    run_folder.LAYOUT.holds_run(config.output)  # before the lock is written into that folder
    archive = Archive(config.archive, skip_damaged=True)
    folder = checkpoint.find_checkpoint(config.checkpoint)
    card = checkpoint.read_card(folder)
    _check_match(archive, card)
    checkpoint.read_weights(folder, card)
    wanted = fingerprint(config, archive, card)
    return SegmentationPlan(
        archive=archive,
        facts=archive_facts.count_facts(archive.index(), sum(archive.file_slices().values())),
        card=card,
        checkpoint_folder=folder,
        output=config.output,
        fingerprint=wanted,
        settings={**settings_of(config), "threshold": wanted.threshold},
        retry_failed=config.retry_failed,
        postprocessing=summary.postprocessing(config),
        max_quarantined=config.max_quarantined,
        actors=ActorRequest.of(config),
    )


def _check_match(archive: Archive, card: ModelCard) -> None:
    """Check that the archive has the channels that the model needs.

    Raises:
        ArchiveError: it cannot.
    """
    if len(archive.info.channels) != card.model.channels:
        raise ArchiveError(
            f"{archive.uri} has {len(archive.info.channels)} channels "
            f"({', '.join(archive.info.channels)}), the model was trained on {card.model.channels} "
            f"({', '.join(card.channels)}); take a checkpoint made for such scans"
        )
    if not archive.info.slices:
        raise ArchiveError(f"{archive.uri} holds no slices")
