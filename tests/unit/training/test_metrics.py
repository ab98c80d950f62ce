import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastai.learner import Learner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.archive.reader import Archive
from segmodel.training.distributed import WorkerContext
from tests.support.tiny_training import learner_of, recipe


def validated(learner: Learner) -> dict[str, object]:
    with learner.no_bar(), learner.no_logging():
        learner.validate()
    found = {metric.name: metric.value for metric in learner.metrics}
    return found | {"patient_dice": [tuple(patient) for patient in found["patient_dice"]]}


def with_batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def validate_as_one_of_two(rank: int, archive: Archive, folder: str) -> None:
    torch.set_num_threads(1)
    # As Ray Train does: fastai reads it, and the two have unequal numbers of batches.
    os.environ["WORLD_SIZE"] = "2"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(validated_together(rank, archive), f"{folder}/{rank}.pt")
    # A Learner's parts refer to each other: without this it would keep gloo and its threads.
    gc.collect()
    dist.destroy_process_group()


def validated_together(rank: int, archive: Archive) -> dict[str, object]:
    model = with_batch_norm()
    wrapped = DistributedDataParallel(model)
    # As after a step: the statistics are those of a worker's own slices.
    model[1].running_mean += rank
    return validated(
        learner_of(archive, recipe(), wrapped, WorkerContext(rank, 2, torch.device("cpu")))
    )


def test_two_workers_validate_what_one_would(squares: Archive, tmp_path: Path) -> None:
    """One worker has three slices of a patient, the other two."""
    torch.multiprocessing.spawn(validate_as_one_of_two, args=(squares, str(tmp_path)), nprocs=2)
    alone = validated(learner_of(squares, recipe(), with_batch_norm()))
    assert 0 < alone["dice"] < 1
    assert alone["patient_dice"] == [(alone["dice"], 5 * 12 * 12)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert (found["dice"], found["patient_dice"]) == (alone["dice"], alone["patient_dice"])
