"""Requests of small trainings, and what is left of them."""

import contextlib
import csv
from pathlib import Path

import psutil

from segmodel.models import checkpoint
from segmodel.storage import store

SIZE = 32
SMALL = ["--arch", "classical", "--width", "4"]


def command(archive: str, output: Path | str, *more: str) -> list[str]:
    return [
        "--archive",
        archive,
        "--output",
        str(output),
        "--image-size",
        str(SIZE),
        "--batch-size",
        "16",
        *more,
    ]


def rows_of(uri: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(store.read_bytes(store.join(uri, name)).decode().splitlines()))


def epochs_in(output: Path) -> int:
    """Epochs that a restart keeps: trainer.pt is the last of an epoch's files."""
    path = output / "last"
    return (
        checkpoint.load_trainer(str(path)).epochs_done
        if (path / checkpoint.TRAINER).exists()
        else 0
    )


def train_workers() -> list[psutil.Process]:
    """Those of this process's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
