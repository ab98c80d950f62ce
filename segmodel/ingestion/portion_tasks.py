"""The Ray tasks that read the portions of an ingest."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from segmodel.ingestion import portion as portions
from segmodel.ingestion.portion import Known, Portion, Report, Target
from segmodel.runtime import ray_cluster
from segmodel.runtime.ray_tasks import WORKER_DIED, why_died
from segmodel.sources.base import Source


def process_portions(
    source: Source, planned: Sequence[Portion], known: Known, target: Target
) -> Iterator[tuple[Portion, Report]]:
    """Yield the reports of portions as they finish.

    If a worker dies, the patients of its portion are read again, one by one. A patient that then
    kills two workers is left out.
    """
    waiting = list(reversed(planned))
    tried_again = set()
    running: dict[Any, Portion] = {}
    while waiting or running:
        while waiting and len(running) < 2 * ray_cluster.cpus():
            portion = waiting.pop()
            own = {name: known[name] for name in portion.patients if name in known}
            reference = _process_portion.remote(
                source.restricted_to(*portion.patients), portion, own, target
            )
            running[reference] = portion
        ready, _ = ray.wait(list(running))
        for reference in ready:
            portion = running.pop(reference)
            try:
                yield portion, ray_cluster.get_result(reference)
            except WORKER_DIED as error:
                if len(portion.patients) > 1:
                    waiting += portions.split(portion)
                    continue
                if portion.part not in tried_again:
                    tried_again.add(portion.part)
                    waiting.append(portion)
                    continue
                (patient,) = portion.patients
                report = portions.lost(portion, source.location_of(patient), why_died(error))
                portions.publish(report, target)
                yield portion, report


@ray.remote(max_retries=0)  # Ray would retry a task that runs out of memory forever
def _process_portion(source: Source, portion: Portion, known: Known, target: Target) -> Report:
    return portions.process(source, portion, known, target)
