"""The Ray tasks that read the portions of an ingest."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import WorkerCrashedError

from segmodel.ingestion import portion as portions
from segmodel.ingestion.portion import Known, Portion, Report, Target
from segmodel.runtime import ray_cluster
from segmodel.sources.base import Source


def process_portions(
    source: Source, planned: Sequence[Portion], known: Known, target: Target
) -> Iterator[tuple[Portion, Report]]:
    """Reports in the order in which they come.

    A portion whose worker dies is read again patient by patient. A patient that kills a worker when
    it is read alone is left out.
    """
    waiting = list(reversed(planned))
    running: dict[Any, Portion] = {}
    while waiting or running:
        while waiting and len(running) < 2 * ray_cluster.cpus():
            portion = waiting.pop()
            own = {name: known[name] for name in portion.patients if name in known}
            reference = _process_portion.remote(
                source.only(*portion.patients), portion, own, target
            )
            running[reference] = portion
        ready, _ = ray.wait(list(running))
        for reference in ready:
            portion = running.pop(reference)
            try:
                yield portion, ray_cluster.get_result(reference)
            except WorkerCrashedError:
                if len(portion.patients) > 1:
                    waiting += portions.split(portion)
                    continue
                (patient,) = portion.patients
                report = portions.lost(portion, source.place(patient), "its reader died")
                portions.publish(report, target)
                yield portion, report


@ray.remote(max_retries=1)
def _process_portion(source: Source, portion: Portion, known: Known, target: Target) -> Report:
    return portions.process(source, portion, known, target)
