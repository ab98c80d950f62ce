"""What a segmentation will meet and do, found out in seconds, before a model is loaded, Ray starts or anything is written."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.reader import Archive
from segmodel.archive.slice_format import REQUIRED
from segmodel.core.errors import ArchiveError
from segmodel.core.progress import format_duration
from segmodel.models.checkpoint import ModelCard
from segmodel.runs import run_folder
from segmodel.runs.run_file import Run
from segmodel.runs.run_folder import Work
from segmodel.storage import store

_SPACING = ("row_spacing_mm", "column_spacing_mm", "slice_spacing_mm")
_PNG_FRAME = 8 + 25 + 12 + 12 + 6
"""Bytes of a PNG around its rows: signature, IHDR, the frames of IDAT and IEND, zlib's header and checksum."""
_NUMBERS = 8 + 4 + 4
"""Bytes of tumor_pixels, mean_probability and probability_sum."""
_SHOWN = 5
"""Files or shapes that a line of the report names."""


@dataclass(frozen=True)
class ArchiveFacts:
    """What an archive holds, as far as it can be read without the pixels."""

    patients: int
    series: int
    shapes: dict[tuple[int, int], int]
    """Slices of each (height, width), the commonest first."""
    without_spacing: int
    """Slices that lack one of the three lengths."""
    incomplete: int
    """Slices without an id, patient, series, index, height or width."""
    unreadable: int
    """Slices whose ids cannot be read, in files that can be opened."""
    most_bytes: int
    """That the masks of all slices can take: a row of a 1-bit image takes its bits and a byte more, before compression."""


@dataclass(frozen=True)
class Preflight:
    """A request that can be done."""

    archive: Archive
    card: ModelCard
    facts: ArchiveFacts
    run: Run
    """run.json as it is, or will be."""
    work: Work
    bytes_to_write: int
    """About how much, after the shards that are done; before the first, how much at most."""
    free_bytes: int | None
    """In the output folder; None where that cannot be known."""

    @property
    def slices_todo(self) -> int:
        """Slices of the shards that are to do."""
        return sum(shard.slices for shard in self.work.todo)

    def report(self) -> str:
        """For people, a line a subject."""
        lines = [*self._archive_lines(), *self._run_lines()]
        return "\n".join(f"{subject:<10}{text}" for subject, text in lines)

    def _archive_lines(self) -> list[tuple[str, str]]:
        facts, archive = self.facts, self.archive
        files = len(archive.files) + len(archive.damaged)
        shapes = [
            f"{height}x{width} ({count:,})" for (height, width), count in facts.shapes.items()
        ]
        trained = ", ".join(self.card.channels)
        lines = [
            (
                "archive",
                f"{archive.info.slices:,} slices, {facts.patients:,} patients, {facts.series:,} series, "
                f"{files:,} files",
            ),
            ("shapes", _some(shapes)),
            (
                "channels",
                f"{', '.join(archive.info.channels)}"
                + (
                    ", as in training"
                    if archive.info.channels == self.card.channels
                    else f"; warning: the model was trained on {trained}"
                ),
            ),
            (
                "spacing",
                f"unknown for {facts.without_spacing:,} slices: volumes of their patients will be empty"
                if facts.without_spacing
                else "known for all slices",
            ),
        ]
        lines += [
            ("damaged", f"{file.slices:,} slices to quarantine: {file.reason}")
            for file in archive.damaged[:_SHOWN]
        ]
        if len(archive.damaged) > _SHOWN:
            lines.append(("damaged", f"and {len(archive.damaged) - _SHOWN:,} more files"))
        if facts.unreadable:
            lines.append(
                ("damaged", f"{facts.unreadable:,} slices to quarantine: their ids cannot be read")
            )
        if facts.incomplete:
            lines.append(
                (
                    "damaged",
                    f"{facts.incomplete:,} slices to quarantine: they lack an id, an index or a size",
                )
            )
        if archive.unnamed:
            lines.append(("ignored", f"not named in archive.json: {_some(archive.unnamed)}"))
        return lines

    def _run_lines(self) -> list[tuple[str, str]]:
        work = self.work
        again = f" ({len(work.retried):,} of them again)" if work.retried else ""
        done = len(work.plan) - len(work.todo)
        lines = [
            (
                "shards",
                f"{done:,} done, {len(work.todo):,} to do{again}: {self.slices_todo:,} slices",
            )
        ]
        if not work.todo:
            return lines
        about = "at most" if done == 0 else "about"
        free = (
            "free space there cannot be known"
            if self.free_bytes is None
            else f"{_megabytes(self.free_bytes)} free"
        )
        lines.append(("writes", f"{about} {_megabytes(self.bytes_to_write)}; {free}"))
        if self.free_bytes is not None and self.free_bytes < self.bytes_to_write:
            lines.append(("warning", "the masks may not fit on that disk"))
        speed = self.run.slices_per_second
        lines.append(
            (
                "time",
                f"about {format_duration(self.slices_todo / speed)}, at {speed:.3g} slices/s as in the last call"
                if speed
                else "known after the first shards",
            )
        )
        return lines


def inspect_request(
    archive: Archive, card: ModelCard, output: str, run: Run, work: Work
) -> Preflight:
    """Gather the facts of a request.

    Raises:
        ArchiveError: the archive is not one for this model, holds no slices, or has slice ids twice.
    """
    index = archive.index()
    facts = archive_facts(index, sum(archive.file_slices().values()))
    todo = sum(shard.slices for shard in work.todo)
    done = sum(shard.slices for shard in work.plan) - todo
    if done:
        sizes = store.file_sizes(store.join(output, run_folder.MASKS), ".parquet")
        again = {shard.output_file for shard in work.todo}
        a_slice = sum(size for name, size in sizes.items() if name not in again) / done
    else:
        a_slice = facts.most_bytes / max(1, index.num_rows)
    return Preflight(archive, card, facts, run, work, round(todo * a_slice), free_bytes(output))


def check_match(archive: Archive, card: ModelCard) -> None:
    """Whether the archive can go into the model at all.

    Raises:
        ArchiveError: it cannot.
    """
    if len(archive.info.channels) != card.model.channels:
        raise ArchiveError(
            f"{archive.uri} has {len(archive.info.channels)} channels ({', '.join(archive.info.channels)}), the model was "
            f"trained on {card.model.channels} ({', '.join(card.channels)}); take a checkpoint made for such scans"
        )
    if not archive.info.slices:
        raise ArchiveError(f"{archive.uri} holds no slices")


def archive_facts(index: pa.Table, slices: int) -> ArchiveFacts:
    """Count.

    Args:
        index: `Archive.index()`.
        slices: of all files that can be opened.
    """
    by_shape = (
        index.group_by(["height", "width"])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending")])
    )
    shapes = {(row["height"], row["width"]): row["count_all"] for row in by_shape.to_pylist()}
    pngs = sum(
        count * (_PNG_FRAME + height * (1 + -(-width // 8)))
        for (height, width), count in shapes.items()
        if height is not None and width is not None
    )
    return ArchiveFacts(
        patients=pc.count_distinct(index["patient_id"]).as_py(),
        series=index.group_by(["patient_id", "series_id"]).aggregate([]).num_rows,
        shapes=shapes,
        without_spacing=_null_in_any(index, _SPACING),
        incomplete=_null_in_any(index, REQUIRED),
        unreadable=slices - index.num_rows,
        most_bytes=pngs + index.nbytes + _NUMBERS * index.num_rows,
    )


def free_bytes(output: str) -> int | None:
    """Free space on the disk of a local folder that need not be there yet; None elsewhere."""
    if not store.is_local(output):
        return None
    path = Path(store.filesystem(output)[1])
    return shutil.disk_usage(
        next(folder for folder in (path, *path.parents) if folder.is_dir())
    ).free


def _null_in_any(index: pa.Table, columns: tuple[str, ...]) -> int:
    if not index.num_rows:
        return 0
    missing = pc.is_null(index[columns[0]])
    for name in columns[1:]:
        missing = pc.or_(missing, pc.is_null(index[name]))
    return int(pc.sum(missing).as_py())


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.3g} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
