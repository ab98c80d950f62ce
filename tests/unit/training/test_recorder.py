"""What the first worker writes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmodel.core.errors import DiskFullError, LeaseLostError
from segmodel.data.splits import Split
from segmodel.settings.training import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.storage import store
from segmodel.storage.folder_lock import Lease
from segmodel.training.lr_range_test import RangeTest
from segmodel.training.pictures import rank_patients
from segmodel.training.task import WorkerTask
from segmodel.training.worker import _write_range_test


def task_of(config: RecipeConfig, lease: Lease) -> WorkerTask:
    nothing: Any = None
    return WorkerTask(
        config=config,
        rows=nothing,
        split=Split((), ()),
        queue=SimpleNamespace(put=lambda message: None),  # type: ignore[arg-type]
        threads=None,
        lease=lease.for_workers(),
    )


def held(folder: Path) -> Lease:
    lease = Lease(str(folder))
    lease.acquire()
    return lease


def take_over(folder: Path) -> None:
    """As another job does when the first one slept for longer than its lease."""
    (folder / "lease.json").unlink()
    held(folder)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_worker_whose_job_lost_the_folder_writes_nothing(tmp_path: Path) -> None:
    task = task_of(TrainConfig(archive="/a", output=str(tmp_path)), held(tmp_path))
    path = tmp_path / "history.csv"
    task.publish(store.publish, str(path), b"1")
    take_over(tmp_path)
    with pytest.raises(LeaseLostError, match="this job lost the folder"):
        task.publish(store.publish, str(path), b"2")
    assert path.read_bytes() == b"1"


def test_a_range_test_that_lost_the_folder_leaves_the_other_one_s_curve(tmp_path: Path) -> None:
    config = FindLrConfig(archive="/a", output=str(tmp_path))
    worker: Any = SimpleNamespace(task=task_of(config, held(tmp_path)))
    take_over(tmp_path)
    (tmp_path / "lr_find.csv").write_text("of the other job")
    with pytest.raises(LeaseLostError):
        _write_range_test(RangeTest((0.1, 0.2), (1.0, 2.0), (1.0, 2.0)), worker)
    assert (tmp_path / "lr_find.csv").read_text() == "of the other job"


@pytest.mark.parametrize(
    ("kind", "there", "advice"),
    [
        (TrainConfig, ["train.json", "last/trainer.pt"], "All epochs .* are kept.* with --resume"),
        (TrainConfig, ["train.json"], "No epoch was finished.* with --resume"),
        (TrainConfig, [], "No epoch was finished.* command again"),
        (FindLrConfig, ["find_lr.json"], "Nothing is kept.* with --overwrite"),
    ],
)
def test_a_full_disk_is_named_with_what_is_kept_and_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[..., RecipeConfig],
    there: list[str],
    advice: str,
) -> None:
    for name in there:
        store.publish(str(tmp_path / name), b"{}")
    task = task_of(kind(archive="/a", output=str(tmp_path)), held(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "history.csv"
    with pytest.raises(
        DiskFullError, match=f"{tmp_path}: No space left on device while writing {path}.*{advice}"
    ):
        task.publish(store.publish, str(path), b"state")
    assert not path.exists()


def test_other_errors_of_a_disk_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(TrainConfig(archive="/a", output=str(tmp_path)), held(tmp_path))
    (tmp_path / "last").write_text("a file")
    with pytest.raises(FileExistsError):
        task.publish(store.publish, str(tmp_path / "last" / "trainer.pt"), b"state")


def patient(name: str, dice: float, tumor_voxels: int) -> dict[str, str]:
    return {"patient_id": name, "dice": str(dice), "tumor_voxels": str(tumor_voxels)}


def names(rows: list[dict[str, str]]) -> list[str]:
    return [row["patient_id"] for row in rows]


def test_the_best_patient_to_show_is_one_with_tumor() -> None:
    rows = [patient("healthy", 1.0, 0), patient("poor", 0.25, 7), patient("good", 0.75, 3)]
    assert names(rank_patients(rows)) == ["good", "poor"]
    assert names(rank_patients(rows[:1])) == ["healthy"]
