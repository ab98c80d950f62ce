"""What becomes of patients whose reader dies; without Ray."""

from collections import Counter
from dataclasses import dataclass

import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from segmodel.ingestion import portion, portion_tasks
from segmodel.ingestion.portion import Portion, Report, Target
from segmodel.runtime import ray_cluster
from segmodel.sources.phantom import PhantomSource


@dataclass
class FakeTasks:
    """Stands for `_process_portion`; reading one of `deadly` raises what Ray would raise."""

    deadly: dict[str, Exception]
    calls: Counter[tuple[str, ...]]

    def remote(self, source: PhantomSource, part: Portion, *_: object) -> Portion:
        return part

    def result(self, part: Portion) -> Report:
        self.calls[part.patients] += 1
        for patient in part.patients:
            if patient in self.deadly:
                raise self.deadly[patient]
        return Report(part.part, (), len(part.patients), len(part.patients), 0, (), ())


def reports(monkeypatch: pytest.MonkeyPatch, tasks: FakeTasks) -> dict[str, Report]:
    monkeypatch.setattr(portion_tasks, "_process_portion", tasks)
    monkeypatch.setattr(portion_tasks.ray, "wait", lambda parts: ([parts[0]], parts[1:]))
    monkeypatch.setattr(ray_cluster, "cpus", lambda: 2)
    monkeypatch.setattr(ray_cluster, "get_result", tasks.result)
    monkeypatch.setattr(portion, "publish", lambda report, target: None)
    source = PhantomSource(count=4, slices=2, size=32, seed=0)
    names = tuple(source.patients())
    planned = [Portion("00000", names[:2]), Portion("00001", names[2:])]
    target = Target("/a", "0" * 12, 3, None)  # type: ignore[arg-type]
    found = portion_tasks.process_portions(source, planned, {}, target)
    return {part.part: report for part, report in found}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerCrashedError(), "its reader died"),
        (OutOfMemoryError("too much"), "its reader needed more memory than there is"),
    ],
)
def test_a_patient_that_kills_its_reader_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    tasks = FakeTasks({"PHANTOM_0003": error}, Counter())
    found = reports(monkeypatch, tasks)
    assert set(found) == {"00000", "00001-0", "00001-1"}
    assert sum(report.slices for report in found.values()) == 3
    (reject,) = found["00001-0"].rejects
    assert (reject["patient_id"], reject["reason"]) == ("PHANTOM_0003", reason)
    assert tasks.calls["PHANTOM_0003",] == 2


def test_a_patient_whose_node_went_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = FakeTasks({}, Counter())
    died = iter([WorkerCrashedError()])
    whole = tasks.result

    def once(part: Portion) -> Report:
        if (error := next(died, None)) is not None:
            raise error
        return whole(part)

    monkeypatch.setattr(tasks, "result", once)
    found = reports(monkeypatch, tasks)
    assert sum(report.slices for report in found.values()) == 4
    assert not any(report.rejects for report in found.values())
