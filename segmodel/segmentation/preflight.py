"""The report before a segmentation: its input, the work to do and the time that it takes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from segmodel.core.progress import format_duration
from segmodel.runs import run_folder
from segmodel.runs.run_file import Run
from segmodel.runs.run_folder import Work
from segmodel.segmentation.plan import SegmentationPlan
from segmodel.storage import store

_SHOWN = 5
"""Files or shapes that a line of the report names."""


@dataclass(frozen=True)
class Preflight:
    """A request that can be done."""

    plan: SegmentationPlan
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
        facts, archive = self.plan.facts, self.plan.archive
        files = len(archive.files) + len(archive.damaged)
        shapes = [
            f"{height}x{width} ({count:,} slices)"
            for (height, width), count in facts.shapes.items()
        ]
        unknown = (
            f"unknown for {facts.without_spacing:,} slices: volumes of their patients will be empty"
        )
        lines = [
            (
                "archive",
                f"{archive.info.slices:,} slices, {facts.patients:,} patients, "
                f"{facts.series:,} series, {files:,} files",
            ),
            ("sizes", _some(shapes)),
            ("channels", self._channels()),
            ("spacing", unknown if facts.without_spacing else "known for all slices"),
            *self._damage_lines(),
        ]
        if archive.unnamed:
            lines.append(("ignored", f"not named in archive.json: {_some(archive.unnamed)}"))
        return lines

    def _channels(self) -> str:
        there, trained = self.plan.archive.info.channels, self.plan.card.channels
        if there == trained:
            return f"{', '.join(there)}, as in training"
        return f"{', '.join(there)}; warning: the model was trained on {', '.join(trained)}"

    def _damage_lines(self) -> list[tuple[str, str]]:
        facts, damaged = self.plan.facts, self.plan.archive.damaged
        texts = [
            f"{file.slices:,} slices to quarantine: {file.reason}" for file in damaged[:_SHOWN]
        ]
        if len(damaged) > _SHOWN:
            texts.append(f"and {len(damaged) - _SHOWN:,} more files")
        if facts.unreadable:
            texts.append(f"{facts.unreadable:,} slices to quarantine: their ids cannot be read")
        if facts.incomplete:
            texts.append(
                f"{facts.incomplete:,} slices to quarantine: they lack an id, an index or a size"
            )
        return [("damaged", text) for text in texts]

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
            else f"{_bytes(self.free_bytes)} free"
        )
        lines.append(("writes", f"{about} {_bytes(self.bytes_to_write)}; {free}"))
        if self.free_bytes is not None and self.free_bytes < self.bytes_to_write:
            lines.append(("warning", "the masks may not fit on that disk"))
        lines.append(("time", self._time()))
        return lines

    def _time(self) -> str:
        speed = self.run.slices_per_second
        if not speed:
            return "known after the first shards"
        duration = format_duration(self.slices_todo / speed)
        return f"about {duration}, at {speed:.3g} slices/s as in the last call"


def inspect_folder(plan: SegmentationPlan) -> Preflight:
    """Look at the run folder: which run is there, if any, and what is to do; nothing is written.

    Raises:
        RequestError: the folder belongs to another request, or to somebody else.
    """
    run = run_folder.claim(plan.output, plan.fingerprint, plan.archive, plan.settings)
    shard_slices = plan.fingerprint.shard_slices
    work = run_folder.find_work(plan.output, plan.archive, shard_slices, plan.retry_failed)
    todo = sum(shard.slices for shard in work.todo)
    done = sum(shard.slices for shard in work.plan) - todo
    if done:
        sizes = store.file_sizes(store.join(plan.output, run_folder.MASKS), ".parquet")
        again = {shard.output_file for shard in work.todo}
        a_slice = sum(size for name, size in sizes.items() if name not in again) / done
    else:
        a_slice = plan.facts.most_bytes / max(1, plan.facts.indexed)
    return Preflight(plan, run, work, round(todo * a_slice), free_bytes(plan.output))


def free_bytes(output: str) -> int | None:
    """Free space on the disk of a local folder that need not be there yet; None elsewhere."""
    if not store.is_local(output):
        return None
    path = Path(store.filesystem(output)[1])
    return shutil.disk_usage(
        next(folder for folder in (path, *path.parents) if folder.is_dir())
    ).free


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _bytes(count: int) -> str:
    if count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
