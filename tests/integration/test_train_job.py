"""jobs.train on a real local Ray: what it writes, and that a killed training is resumed."""

import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from jobs import train
from segmodel.core.errors import (
    ConfigError,
)
from segmodel.models import checkpoint
from segmodel.models.cost import count_parameters
from segmodel.models.unet import ClassicalUnet
from segmodel.storage import store
from segmodel.training.console import TABLE_HEADER
from segmodel.training.output import TRAINING
from tests.support.small_training import SMALL, command, epochs_in, rows_of, train_workers
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("local_ray")

ROOT = Path(__file__).parents[2]
EPOCHS = 6
PNG = b"\x89PNG\r\n\x1a\n"
RECIPE = [*SMALL, "--epochs", f"[1, {EPOCHS - 1}]", "--lr", "[auto, 5e-3]", "--workers", "2"]
RECIPE += ["--precision", "fp32"]  # two trainings are compared; each alone would choose its own


def history_of(uri: str) -> list[dict[str, str]]:
    """history.csv without what depends on the clock."""
    timed = ("seconds", "slices_per_second")
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in rows_of(uri, "history.csv")
    ]


@pytest.fixture(scope="module")
def undisturbed(training_archive: str, s3_bucket: str) -> tuple[str, str]:
    """A training of two workers into S3, and what it printed."""
    output = store.join(s3_bucket, "trained")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([*command(training_archive, output), *RECIPE]) == 0
    return output, printed.getvalue()


def test_auto_takes_the_suggestion_of_a_range_test_for_its_1cycle(
    undisturbed: tuple[str, str],
) -> None:
    output, printed = undisturbed
    assert "workers: 2, on cpu, 8 + 8 slices a pass" in printed
    suggestion = float(printed.split("suggested learning rate ")[1].split(",")[0])
    assert 1e-6 < suggestion < 1
    cycles = re.search(r"1cycle: 1 epochs at up to (\S+), then 5 epochs at up to 0.005", printed)
    assert cycles is not None
    assert float(cycles[1]) == pytest.approx(suggestion, rel=0.05)  # both are rounded
    assert TABLE_HEADER in printed
    steps = rows_of(output, "steps.csv")
    assert float(steps[0]["lr"]) == pytest.approx(suggestion / 25, rel=0.01)
    assert float(steps[6]["lr"]) == pytest.approx(5e-3 / 25)


def test_history_and_steps_hold_each_epoch_and_step(undisturbed: tuple[str, str]) -> None:
    output, _ = undisturbed
    history = rows_of(output, "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4", "5", "6"]
    names = ("train_loss", "valid_loss", "dice", "patient_dice")
    assert all(math.isfinite(float(row[name])) for row in history for name in names)
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    steps = rows_of(output, "steps.csv")
    # 96 slices are 6 steps of 16
    assert [int(row["step"]) for row in steps] == list(range(1, 6 * EPOCHS + 1))


def test_best_and_last_name_their_patients_and_their_dice(undisturbed: tuple[str, str]) -> None:
    output, _ = undisturbed
    history = rows_of(output, "history.csv")
    split = json.loads(store.read_bytes(store.join(output, "split.json")))
    assert len(split["valid"]) == 1  # a fifth of 5
    assert not set(split["train"]) & set(split["valid"])
    best = checkpoint.read_card(store.join(output, "best"))
    last = checkpoint.read_card(store.join(output, "last"))
    assert best.training_patients == tuple(split["train"])
    assert best.validation_patients == tuple(split["valid"])
    assert best.metrics["dice"] == max(float(row["dice"]) for row in history)
    assert last.metrics["epoch"] == EPOCHS
    (patient,) = rows_of(output, "patients.csv")
    assert patient["patient_id"] == split["valid"][0]
    assert float(patient["dice"]) == pytest.approx(best.metrics["patient_dice"])
    assert int(patient["tumor_voxels"]) > 0
    assert best.metrics["tumor_patient_dice"] == best.metrics["patient_dice"]
    assert [row["tumor_patient_dice"] for row in history] == [r["patient_dice"] for r in history]


def test_a_training_into_s3_writes_what_it_lists_and_nothing_else(
    undisturbed: tuple[str, str],
) -> None:
    output, _ = undisturbed
    assert checkpoint.load_trainer(store.join(output, "last")).precision == "fp32"
    assert store.list_files(store.join(output, "best")) == ["model.json", "model.safetensors"]
    assert store.list_files(store.join(output, "last")) == [
        "model.json",
        "model.safetensors",
        "trainer.pt",
    ]
    fs, path = store.filesystem(output)
    written = {name.removeprefix(f"{path}/") for name in fs.find(path)}
    shown = {name for name in written if not name.startswith(".")}
    assert shown == {"train.json", *TRAINING.results}  # only what it lists is known as its own
    figures = store.join(output, "figures")
    assert store.list_files(figures) == [
        "history.png",
        "lr_find.png",
        "patients.png",
        "samples.png",
        "schedule.png",
    ]
    assert all(
        store.read_bytes(store.join(figures, name)).startswith(PNG)
        for name in store.list_files(figures)
    )
    assert store.exists(store.join(output, ".neptune/offline"))
    assert not store.exists(store.join(output, ".ray"))


def tracked(
    uri: str,
) -> tuple[dict[str, Any], dict[str, list[tuple[float, float]]], set[str], set[str]]:
    """What Neptune's client stored offline: values, series as (step, value), tags, file names."""
    values: dict[str, Any] = {}
    series: dict[str, list[tuple[float, float]]] = {}
    tags: set[str] = set()
    files: set[str] = set()
    fs, path = store.filesystem(store.join(uri, ".neptune/offline"))
    (log,) = fs.glob(f"{path}/run__*/data-*.log")
    text = fs.cat_file(log).decode()
    while text:
        entry, end = json.JSONDecoder().raw_decode(text)
        text = text[end:].lstrip()
        operation = entry["obj"]
        name = "/".join(operation["path"])
        if operation["type"].startswith("Assign"):
            values[name] = operation["value"]
        elif operation["type"] == "LogFloats":
            series.setdefault(name, []).extend(
                (item["step"], item["value"]) for item in operation["values"]
            )
        elif operation["type"] == "AddStrings":
            tags |= set(operation["values"])
        elif operation["type"].startswith("UploadFile"):
            files.add(name)
    return values, series, tags, files


def test_neptune_s_client_has_stored_what_its_users_look_for(undisturbed: tuple[str, str]) -> None:
    output, _ = undisturbed
    values, series, tags, files = tracked(output)
    history, steps = rows_of(output, "history.csv"), rows_of(output, "steps.csv")
    assert values["sys/name"] == "train trained"
    assert tags == {"segmodel", "train", "classical"}
    assert values["parameters/weight_decay"] == 0.01
    assert values["model/parameters"] == count_parameters(ClassicalUnet(channels=3, width=4))
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", values["source/revision"])
    assert re.fullmatch(r"[0-9a-f]{64}", values["source/sha256"])
    assert (
        values["run/id"] == json.loads(store.read_bytes(store.join(output, "train.json")))["run_id"]
    )
    assert (
        values["checkpoint/weights_sha256"]
        == checkpoint.read_card(store.join(output, "best")).weights_sha256
    )
    for name in ("train_loss", "valid_loss", "dice", "patient_dice"):
        assert series[f"train/epoch/{name}"] == [
            (float(row["epoch"]), float(row[name])) for row in history
        ]
    for name in ("loss", "lr", "momentum"):
        assert series[f"train/step/{name}"] == [
            (float(row["step"]), float(row[name])) for row in steps
        ]
    files = {
        name for name in files if name.startswith("figures/")
    }  # beside source_code/files, which is empty
    assert files == {
        f"figures/{name}" for name in ("history", "lr_find", "patients", "samples", "schedule")
    }


@pytest.mark.timeout(500)
def test_a_training_survives_its_worker_and_its_driver_and_ends_where_it_would_have(
    training_archive: str, undisturbed: tuple[str, str], tmp_path: Path
) -> None:
    """A worker is killed after the first epoch, the driver one epoch later, within a 1cycle."""
    output = tmp_path / "model"
    flags = [*command(training_archive, output), *RECIPE, "--tracking", "none"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    log = (tmp_path / "log").open("w+")
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.support.slow_training", *flags],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: len(train_workers()) == 2, "two workers")
        _, second = train_workers()  # now: looking for them may take as long as an epoch
        wait_for(lambda: epochs_in(output) >= 1, "the first epoch")
        second.send_signal(signal.SIGKILL)
        wait_for(lambda: "going on after epoch" in (tmp_path / "log").read_text(), "new workers")
        begun = epochs_in(output)
        wait_for(lambda: epochs_in(output) > begun, "their first epoch")
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not train_workers(), "the workers of the dead driver to end")
    assert 2 <= epochs_in(output) < EPOCHS, (tmp_path / "log").read_text()

    with pytest.raises(ConfigError, match="already holds a training; give --resume"):
        train.main(flags)
    with pytest.raises(
        ConfigError, match=r"begun with other settings: weight_decay was 0\.01, is 0\.5"
    ):
        train.main([*flags, "--resume", "--weight-decay", "0.5"])
    assert train.main([*flags, "--resume"]) == 0
    assert history_of(str(output)) == history_of(undisturbed[0])
    ends = [
        checkpoint.load(store.join(uri, "last"))[0].state_dict()
        for uri in (undisturbed[0], str(output))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [row["step"] for row in rows_of(str(output), "steps.csv")] == [
        str(n) for n in range(1, 6 * EPOCHS + 1)
    ]
