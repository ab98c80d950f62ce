"""What a training prints: one table, one status line on a terminal, no flood in a log."""

import re

import pytest

from segmodel.core.dice import EpochResult, Step
from segmodel.core.progress import StatusLine
from segmodel.runtime.tracker import Tracker
from segmodel.training.console import TABLE_HEADER, TrainingListener
from segmodel.training.messages import EpochDone, StepsDone, TrainingDone, TrainingStarted


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(listener: TrainingListener, history: tuple[EpochResult, ...]) -> None:
    listener.handle(
        TrainingStarted(
            steps=60,
            steps_done=20 * len(history),
            cycles=((3, 0.1),),
            history=history,
            best_sha256="",
            last_steps=(),
        )
    )


def train(terminal: bool) -> None:
    """Three epochs of 20 steps, 5 s a step; the workers start again after the second epoch."""
    clock = Clock()
    listener = TrainingListener(Tracker(), StatusLine(terminal, clock))
    begin(listener, ())
    history: list[EpochResult] = []
    for epoch in (1, 2, 3):
        for step in range(20 * epoch - 19, 20 * epoch + 1):
            clock.now += 5
            listener.handle(StepsDone((Step(step, epoch, 0.1, 0.9, 0.25),)))
        history.append(EpochResult(epoch, 0.25, 0.5, 0.8, 0.7, 100.0, 100.0, 0.6))
        listener.handle(EpochDone(history[-1], ""))
        if epoch == 2:
            begin(listener, tuple(history))
    listener.handle(TrainingDone(1.0))


TABLE = [
    TABLE_HEADER,
    "    1      0.2500      0.5000  0.8000      0.7000      0.6000       100   2 min     3 min",
    "    2      0.2500      0.5000  0.8000      0.7000      0.6000       100   2 min     2 min",
    "going on after epoch 2",
    "    3      0.2500      0.5000  0.8000      0.7000      0.6000       100   2 min",
]
"""0.2 steps a second: the 40 steps after the first epoch take 200 s, the last 20 take 100 s."""


def test_a_log_has_one_table_and_one_estimate_and_no_line_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(terminal=False)
    assert capsys.readouterr().out.splitlines() == [
        "1cycle: 3 epochs at up to 0.1",
        "an epoch takes about 2 min; 4 min left",  # after 8 of 60 steps, 260 s are left
        *TABLE,
    ]


def test_a_terminal_shows_the_table_and_one_line_that_is_rewritten(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(terminal=True)
    printed = capsys.readouterr().out
    # What stays of a line that was rewritten is what follows the last return.
    left = [re.sub(r".*\r(\x1b\[K)?", "", line) for line in printed.split("\n")]
    assert left == ["1cycle: 3 epochs at up to 0.1", *TABLE, ""]
    assert "\repoch 1 of 3, step 2 of 60, loss 0.250, 5 min left\x1b[K" in printed


def test_a_slow_first_step_does_not_count_for_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    listener = TrainingListener(Tracker(), StatusLine(terminal=False, clock=clock))
    begin(listener, ())
    for step in range(1, 12):
        clock.now += 5 if step > 1 else 100
        listener.handle(StepsDone((Step(step, 1, 0.1, 0.9, 0.25),)))
    # After 7 steps of 5 s, 52 of the 60 steps are left: 260 s.
    assert "an epoch takes about 2 min; 4 min left" in capsys.readouterr().out.splitlines()


def test_a_status_is_rewritten_at_most_twice_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    status = StatusLine(terminal=True, clock=clock)
    for tenths in range(11):  # 0 to 1 s
        clock.now = tenths / 10
        status.show(str(tenths))
    assert re.findall(r"\r(\d+)", capsys.readouterr().out) == ["0", "5", "10"]
