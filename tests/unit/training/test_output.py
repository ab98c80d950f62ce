"""Who may use the output folder of a training, and with what request a training goes on."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmodel.core.errors import ConfigError, LeaseError
from segmodel.data.splits import Split
from segmodel.runtime import ray_cluster
from segmodel.settings.training import FindLrConfig, TrainConfig
from segmodel.storage import folder_lock, store
from segmodel.training import driver, output
from segmodel.training.output import check_range_test, claim_training, find_training


def archive(archive_id: str = "a1") -> Any:
    return SimpleNamespace(info=SimpleNamespace(archive_id=archive_id))


def request(folder: str | Path, **settings: Any) -> TrainConfig:
    return TrainConfig(**{"archive": "/data/archive", "output": str(folder)} | settings)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a training on /data/archive, with encoder weights from a file."""
    folder = tmp_path / "model"
    claim_training(request(folder, encoder_weights="/data/resnet34.pth"), archive())
    store.publish(str(folder / "last" / "trainer.pt"), b"")
    return folder


def run_id(folder: Path) -> str:
    return str(json.loads((folder / "train.json").read_text())["run_id"])


def test_a_training_that_was_moved_with_its_archive_goes_on(begun: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    begun.rename(moved)
    other = request(moved, archive="s3://mri/archive", encoder_weights="/mnt/r.pth", resume=True)
    assert find_training(other, archive()) == run_id(moved)


def test_a_training_that_is_reached_through_a_link_goes_on(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(begun)
    linked = request(tmp_path / "link", encoder_weights="/data/resnet34.pth", resume=True)
    assert find_training(linked, archive()) == run_id(begun)


def test_a_training_that_was_copied_to_s3_goes_on(begun: Path, s3_bucket: str) -> None:
    copy = store.join(s3_bucket, "copied", begun.parent.name)
    store.upload_folder(copy, str(begun))
    again = request(copy, encoder_weights="/data/resnet34.pth", resume=True)
    assert find_training(again, archive()) == run_id(begun)
    assert output.has_finished_epochs(again)


def test_a_training_does_not_go_on_with_another_archive_or_another_setting(begun: Path) -> None:
    same = request(begun, encoder_weights="/data/resnet34.pth", resume=True)
    with pytest.raises(ConfigError, match="archive_id was 'a1', is 'a2'"):
        find_training(same, archive("a2"))
    with pytest.raises(ConfigError, match=r"weight_decay was 0\.01, is 0\.5"):
        find_training(replace(same, weight_decay=0.5), archive())
    with pytest.raises(ConfigError, match="encoder_weights was 'a file', is 'imagenet'"):
        find_training(replace(same, encoder_weights="imagenet"), archive())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["patients.csv", "history.csv", "figures/samples.png", "best/model.json"]
)
def test_a_training_never_replaces_a_user_s_own_file(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    store.publish(str(tmp_path / name), b"mine")
    with pytest.raises(ConfigError, match=f"holds {name} but no train.json"):
        find_training(request(tmp_path, overwrite=overwrite), archive())


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


MODEL = ["best/model.json", "best/model.safetensors"]


def test_overwrite_removes_what_the_earlier_training_wrote_except_its_model(
    begun: Path,
) -> None:
    for name in ("patients.csv", *MODEL, "best/notes.txt", "figures/of-the-article.png"):
        store.publish(str(begun / name), name.encode())
    anew = request(begun, overwrite=True)
    old = run_id(begun)
    assert find_training(anew, archive()) is None
    claim_training(anew, archive())
    assert run_id(begun) != old
    left = [*MODEL, "best/notes.txt", "figures/of-the-article.png", "train.json"]
    assert files_in(begun) == left
    assert [(begun / name).read_text() for name in MODEL] == MODEL
    assert not output.has_finished_epochs(anew)


def test_a_request_that_fails_leaves_the_earlier_model_to_be_replaced(
    begun: Path,
) -> None:
    for name in MODEL:
        store.publish(str(begun / name), b"")
    anew = request(begun, overwrite=True)
    claim_training(anew, archive())
    store.publish(str(begun / "split.json"), b"{}")
    output.release_training(anew)
    assert files_in(begun) == [*MODEL, "train.json"]
    assert find_training(anew, archive()) is None


def test_a_request_that_fails_in_a_new_folder_leaves_nothing(tmp_path: Path) -> None:
    claim_training(request(tmp_path), archive())
    store.publish(str(tmp_path / "split.json"), b"{}")
    output.release_training(request(tmp_path))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["split.json", "lr_find.csv", "figures/lr_find.png"])
def test_a_range_test_never_replaces_a_user_s_own_file(tmp_path: Path, name: str) -> None:
    store.publish(str(tmp_path / name), b"mine")
    config = FindLrConfig(archive="/data/archive", output=str(tmp_path), overwrite=True)
    with pytest.raises(ConfigError, match=f"holds {name} but no find_lr.json"):
        check_range_test(config)


def test_two_range_tests_do_not_work_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Archive", lambda uri: archive())
    monkeypatch.setattr(driver, "_plan", lambda *_: (None, Split((), ())))
    monkeypatch.setattr(ray_cluster, "connect", nullcontext)
    config = FindLrConfig(archive="/data/archive", output=str(tmp_path), tracking="none")
    with folder_lock.acquire_lock(str(tmp_path)), pytest.raises(LeaseError, match="in use by"):
        driver.find_lr(config)
