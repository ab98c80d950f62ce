from pathlib import Path

import pyarrow as pa
import pytest

from segmodel.storage import csv_files

FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\tx"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_run_begins_with_a_quote(tmp_path: Path, text: str) -> None:
    csv_files.publish_csv(str(tmp_path / "a.csv"), [{"patient_id": text, "change": -1.5}])
    csv_files.publish_csv_table(
        str(tmp_path / "b.csv"), pa.table({"patient_id": [text], "change": [-1.5]})
    )
    for name in ("a.csv", "b.csv"):
        content = (tmp_path / name).read_bytes().decode()
        assert f"'{text}" in content
        assert ",-1.5" in content
    (row,) = csv_files.read_csv(str(tmp_path / "a.csv"))
    assert row == {"patient_id": text, "change": "-1.5"}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column_is_made_harmless(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"patient_id": pa.array(["=1", None, "a\rb"]).cast(kind)})
    csv_files.publish_csv_table(str(tmp_path / "a.csv"), table)
    assert (tmp_path / "a.csv").read_bytes() == b'"patient_id"\n"\'=1"\n\n"a b"\n'


@pytest.mark.parametrize("text", ["P1", "007", "NA", "a=b", "'quoted'", "'=x"])
def test_other_texts_are_read_back_as_they_were(tmp_path: Path, text: str) -> None:
    csv_files.publish_csv(str(tmp_path / "a.csv"), [{"patient_id": text}])
    assert csv_files.read_csv(str(tmp_path / "a.csv")) == [{"patient_id": text}]


def test_nulls_are_empty_cells(tmp_path: Path) -> None:
    csv_files.publish_csv_table(
        str(tmp_path / "a.csv"), pa.table({"x": ["a", None], "y": [None, 1]})
    )
    assert (tmp_path / "a.csv").read_text().splitlines()[1:] == ['"a",', ",1"]


def test_a_carriage_return_in_an_id_ends_no_row(tmp_path: Path) -> None:
    csv_files.publish_csv(str(tmp_path / "a.csv"), [{"patient_id": "\r=1", "n": 1}])
    assert csv_files.read_csv(str(tmp_path / "a.csv")) == [{"patient_id": "' =1", "n": "1"}]


def test_numbers_of_a_table_are_rounded_by_the_unit_of_their_column(tmp_path: Path) -> None:
    columns = {"volume_ml": [58.58333, None], "volume_mm3": [58583.33, 4.5], "seconds": [0.1234, 1]}
    csv_files.publish_csv_table(str(tmp_path / "a.csv"), pa.table(columns))
    assert (tmp_path / "a.csv").read_text().splitlines()[1:] == ["58.6,58583,0.1234", ",4.5,1"]
