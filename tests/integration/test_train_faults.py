"""jobs.train on a real local Ray: NaN losses, broken disks and nodes that come and go."""

import contextlib
import io
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from jobs import train
from segmodel.core.errors import (
    ArchiveError,
    TrainingError,
)
from segmodel.models import checkpoint
from segmodel.training import worker_group
from tests.support import bad_disk, nodes, slow_training
from tests.support.small_training import SMALL, command, epochs_in, rows_of, train_workers
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_loss_of_nan_ends_an_elastic_training_and_names_the_last_good_checkpoint(
    training_archive: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This runs before test_train_job, which kills a driver: for 3 minutes Ray counts the dead
    # driver's CPUs as taken.
    monkeypatch.setattr(worker_group, "RESIZE_SECONDS", 2.0)
    output = tmp_path / "model"
    more = [
        *SMALL,
        "--epochs",
        "[1, 1]",
        "--lr",
        "[1e-3, 1e30]",
        "--workers",
        "1:2",
        "--data",
        "stream",
        "--tracking",
        "none",
    ]
    with pytest.raises(
        TrainingError,
        match=rf"the loss became \S+ in epoch 2, step \d+.*; {output}/last holds the last good",
    ):
        train.main([*command(training_archive, output), *more])
    checkpoint.load(str(output / "last"))
    assert epochs_in(output) == 1
    printed = capsys.readouterr().out
    assert "workers: 1 to 2, on CPUs" in printed
    assert "streamed from the archive" in printed
    assert re.search(r"workers: (1, on cpu, 16|2, on cpu, 8 \+ 8) slices a pass", printed)


def test_an_error_that_one_worker_alone_meets_in_its_set_up_ends_all_within_seconds(
    training_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker waits for it in a collective, which gives up after half an hour."""
    monkeypatch.setattr(worker_group, "_train_loop", bad_disk.train_with_a_bad_disk)
    flags = [
        *command(training_archive, tmp_path / "model"),
        *SMALL,
        "--workers",
        "2",
        "--tracking",
        "none",
    ]
    with pytest.raises(
        ArchiveError, match=rf"part-00000: Input/output error \(on node {socket.gethostname()}\)"
    ):
        train.main(flags)
    raised = float((tmp_path / "model-raised").read_text())
    assert time.time() - raised < 15
    assert not train_workers()


def test_an_elastic_training_uses_a_new_node_and_survives_its_death(
    training_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_group, "RESIZE_SECONDS", 2.0)
    monkeypatch.setattr(worker_group, "_train_loop", slow_training.train_slowly)
    monkeypatch.setenv(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5"
    )  # in place of worker_group.PLACEMENT_SECONDS
    output, epochs, cpus = tmp_path / "model", 18, int(ray.cluster_resources()["CPU"])
    flags = [
        *command(training_archive, output),
        *SMALL,
        "--epochs",
        str(epochs),
        "--workers",
        f"1:{cpus + 1}",
        "--tracking",
        "none",
    ]
    printed = io.StringIO()

    def join_and_die() -> None:
        wait_for(lambda: epochs_in(output) >= 1, "the first epoch")
        with nodes.second_node() as raylet:
            wait_for(lambda: f"workers: {cpus + 1}, on cpu" in printed.getvalue(), "the new worker")
            begun = epochs_in(output)
            wait_for(lambda: epochs_in(output) > begun, "an epoch of all workers")
            raylet.send_signal(signal.SIGKILL)
        wait_for(
            lambda: printed.getvalue().count(f"workers: {cpus}, on cpu") == 2, "those that are left"
        )
        (output / "hurry").touch()

    with contextlib.redirect_stdout(printed), ThreadPoolExecutor(1) as pool:
        other = pool.submit(join_and_die)
        assert train.main(flags) == 0
        other.result()
    found = re.findall(r"workers: (\d+), on cpu,|^ +(\d+)  +\d", printed.getvalue(), re.MULTILINE)
    assert [int(workers) for workers, _ in found if workers] == [cpus, cpus + 1, cpus], (
        printed.getvalue()
    )
    assert [int(epoch) for _, epoch in found if epoch] == list(range(1, epochs + 1)), (
        printed.getvalue()
    )
    assert [row["epoch"] for row in rows_of(str(output), "history.csv")] == [
        str(n) for n in range(1, epochs + 1)
    ]
