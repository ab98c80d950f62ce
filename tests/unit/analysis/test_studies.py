from datetime import date
from pathlib import Path

import pytest

from segmodel.analysis import studies
from segmodel.analysis.studies import common_date
from segmodel.archive.reader import Archive
from segmodel.core import schema
from tests.support.scans import describe_series, scans, truncate, write

FIRST, LATER = date(2020, 1, 1), date(2020, 7, 1)


def test_the_archive_gives_the_date_of_each_series_and_the_sequences_it_lacks(
    tmp_path: Path,
) -> None:
    write(tmp_path, scans("A", 2), scans("B", 2))
    shown = [
        {"name": "FLAIR", "description": "AX FLAIR", "because": "the rules"},
        {
            "name": "post-contrast",
            "description": "AX FLAIR",
            "because": f"FLAIR {schema.STANDS_IN}",
        },
    ]
    plain = [{"name": "FLAIR", "because": None}]
    describe_series(tmp_path, study_date={"A": FIRST, "B": None}, channels={"A": shown, "B": plain})
    found = studies.of_archive(Archive(str(tmp_path)))
    assert found["A", "A"] == studies.Study(FIRST, ("post-contrast",), {"FLAIR": "AX FLAIR"})
    assert found["B", "B"] == studies.Study(None, (), {})


def test_a_damaged_table_of_series_costs_the_dates_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, scans("A", 2))
    for path in (tmp_path / "series").iterdir():
        truncate(path)
    assert studies.of_archive(Archive(str(tmp_path))) == {}
    assert "dates of its studies cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dates", "common"),
    [([FIRST], FIRST), ([FIRST, FIRST], FIRST), ([FIRST, LATER], None), ([FIRST, None], None)],
)
def test_several_series_have_a_date_in_common_or_none(
    dates: list[date | None], common: date | None
) -> None:
    assert common_date(dates) == common
