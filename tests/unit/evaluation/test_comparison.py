"""Who may use the output folder of a comparison."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmodel.core.errors import ConfigError, LeaseError
from segmodel.evaluation import comparison
from segmodel.evaluation.comparison import _check_output
from segmodel.runtime import ray_cluster
from segmodel.settings.training import CompareConfig
from segmodel.storage import folder_lock, store

ARCHIVE: Any = SimpleNamespace(info=SimpleNamespace(archive_id="a1"))


def request(folder: Path, **settings: Any) -> CompareConfig:
    return CompareConfig(**{"archive": "/data/archive", "output": str(folder)} | settings)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("compare.csv", r"compare.csv but no compare.json"),
        ("figures/compare.png", r"figures/compare.png but no compare.json"),
        ("classical/patients.csv", r"patients.csv but no train.json"),
    ],
)
def test_a_comparison_never_replaces_a_user_s_own_file(
    tmp_path: Path, name: str, shown: str
) -> None:
    store.publish(str(tmp_path / name), b"mine")
    with pytest.raises(ConfigError, match=shown):
        _check_output(request(tmp_path, overwrite=True), ARCHIVE)


def test_a_second_comparison_in_a_folder_must_be_asked_for(tmp_path: Path) -> None:
    store.publish(str(tmp_path / "compare.csv"), b"")
    store.publish(str(tmp_path / "compare.json"), b'{"checkpoints": null}')
    checkpoints = ["/runs/a", "/runs/b"]
    with pytest.raises(ConfigError, match="already holds a comparison; give --overwrite"):
        _check_output(request(tmp_path, checkpoints=checkpoints), ARCHIVE)
    _check_output(request(tmp_path, checkpoints=checkpoints, overwrite=True), ARCHIVE)


def test_two_comparisons_do_not_work_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "Archive", lambda uri: ARCHIVE)
    monkeypatch.setattr(comparison, "find_annotated", lambda *_: None)
    monkeypatch.setattr(ray_cluster, "connect", nullcontext)
    config = request(tmp_path, checkpoints=["/runs/a", "/runs/b"], tracking="none")
    with folder_lock.acquire_lock(str(tmp_path)), pytest.raises(LeaseError, match="in use by"):
        comparison.compare(config)
