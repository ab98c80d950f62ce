import pytest

from segmodel.core.progress import Progress, format_duration


class Clock:
    """Seconds that stand still until they are set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_printed_only_once_the_last_is_old_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = Progress(100, "slices", interval_s=10, clock=clock)
    printed = []
    for seconds in (1, 9, 10, 12, 19, 21):
        clock.now = 1000.0 + seconds
        progress.advance(1)
        printed.append(capsys.readouterr().out.count("\n"))
    assert printed == [0, 0, 1, 0, 0, 1]


def test_a_line_gives_count_rate_time_left_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(2000, "slices", interval_s=5, clock=clock)
    clock.now += 500
    progress.advance(1250, "P7")  # 2.5 a second, so that the other 750 take 300 s
    assert capsys.readouterr().out == "1,250 of 2,000 slices, 2.5 slices/s, 5 min left, P7\n"


def test_a_finished_job_has_no_time_left() -> None:
    clock = Clock()
    progress = Progress(4, "shards", interval_s=5, clock=clock)
    clock.now += 2
    progress.advance(4)
    assert progress.line() == "4 of 4 shards, 2 shards/s"


def test_what_an_earlier_run_has_done_counts_as_done_and_not_as_fast() -> None:
    clock = Clock()
    progress = Progress(100, "steps", interval_s=5, clock=clock, done=60)
    assert progress.line() == "60 of 100 steps, 0 steps/s"
    clock.now += 10
    progress.advance(20)  # 2 a second, so that the other 20 take 10 s
    assert progress.line() == "80 of 100 steps, 2 steps/s, 10 s left"


def test_a_job_that_has_done_nothing_yet_does_not_guess_the_time_left() -> None:
    assert Progress(4, "shards", interval_s=5, clock=Clock()).line() == "0 of 4 shards, 0 shards/s"


def test_work_done_in_no_time_does_not_divide_by_zero() -> None:
    progress = Progress(4, "shards", interval_s=5, clock=Clock())
    progress.advance(2)
    assert progress.line().startswith("2 of 4 shards")
    assert progress.line().endswith("0 s left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (89.4, "89 s"),
        (120, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (185 * 60, "3 h 05 min"),
        (25 * 3600, "25 h 00 min"),
    ],
)
def test_a_duration_is_told_in_the_unit_people_would_use(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
