"""In which number format a run computes: decided once, when it begins, for all workers."""

from dataclasses import replace
from typing import Any

import ray

from segmodel.inference.precision import Precision, choose_precision
from segmodel.models import checkpoint
from segmodel.models.cpu import set_up_cpu
from segmodel.runs.run_file import UNDECIDED, Run
from segmodel.runtime import ray_cluster
from segmodel.segmentation.actors import Actors


def decide(run: Run, checkpoint_folder: str, actors: Actors) -> Run:
    """The run with the precision in its fingerprint; a resumed run keeps its own.

    Args:
        run: as it is, or will be.
        checkpoint_folder: URI.
        actors: of the run.
    """
    if run.fingerprint.precision != UNDECIDED:
        return run
    precision: Precision = "bf16"
    if actors.cpus is not None:
        if ray_cluster.is_single_machine():
            precision = find_faster_precision(checkpoint_folder, None)
        else:  # the driver's machine may have another CPU than the workers'
            task: Any = ray.remote(num_cpus=actors.cpus)(find_faster_precision)
            precision = ray_cluster.get_result(task.remote(checkpoint_folder, actors.cpus))
    return replace(run, fingerprint=replace(run.fingerprint, precision=precision))


def find_faster_precision(checkpoint_folder: str, threads: int | None) -> Precision:
    """The faster format on this machine's CPU.

    Args:
        checkpoint_folder: URI.
        threads: CPU threads for torch; None leaves its default.
    """
    set_up_cpu(threads)
    model, card = checkpoint.load(checkpoint_folder)
    return choose_precision("auto", False, model, card)
