"""Who may use the output folder of a comparison."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmodel.core.errors import ConfigError
from segmodel.evaluation.comparison import _check_output
from segmodel.settings.training import CompareConfig
from segmodel.storage import store

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
