"""The page of a segmentation: what it says, its pictures, and what it does without them."""

import html as html_module
import re
import shutil
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import report
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.archive.manifest import read_info
from segmodel.core import schema
from segmodel.core.errors import ConfigError, FingerprintError
from segmodel.report import quarantine
from segmodel.report.run_figures import speed_points
from segmodel.runs import run_file
from segmodel.storage import store
from tests.support import small_run
from tests.support.browser import needs_chromium, visit

ROOT = Path(__file__).parents[3]
DASH = "\u2013 "
EVIL = "<script>alert('x')</script>\"&"


def page_of(run: str, *flags: str) -> str:
    assert report.main([f"--run={run}", "--tracking=none", *flags]) == 0
    return Path(run, "report.html").read_text()


def text_of(page: str) -> str:
    """The words of a page, as a reader sees them."""
    return " ".join(
        html_module.unescape(
            re.sub("<(style|script).*?</\\1>|<[^>]*>", " ", page, flags=re.DOTALL)
        ).split()
    )


def test_the_page_says_what_ran_and_what_it_came_to(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A", "B"], lost=(("read", "page 3 is damaged"),))
    text = text_of(page_of(run))
    for words in (
        "2 patients",
        "10 of 11 slices segmented",
        "1 quarantined",
        "0 exit code",  # 1 of 11 is below the 10 % that were allowed
        "2026-01-02 20:00:00 UTC",
        "1 h 30 min later",
        "12.5 slices a second",
        run_file.read(run).fingerprint.sha256,
        "page 3 is damaged",
        "Restore a good copy of the same size and give the command with --retry-failed.",
        "The model has seen 1 of 2 patients",
        "the model was trained on this patient",
        "unknown: the checkpoint no longer exists",
        "4.4 ml",  # 55 voxels of 80 cubic millimetres, of patient B
    ):
        assert words in text, words


def test_more_quarantine_than_allowed_is_exit_code_3(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"], lost=(("read", "a"), ("check", "b")))
    assert "Exit code 3: 28.6% of the slices are in quarantine, 10.0% were allowed" in text_of(
        page_of(run)
    )


def test_each_patient_has_three_slices_with_outlines_and_a_scale_bar(tmp_path: Path) -> None:
    page = page_of(small_run.write_small_run(tmp_path, ["A", "B"]))
    assert page.count('src="data:image/webp;base64,') == 6
    assert page.count('class="truth"') == page.count('class="predicted"') == 6
    assert page.count(">20 mm</span>") == 6  # of 128 mm, at most a third
    assert 'd="M5 5h5M5 10h5M5 5v5M10 5v5"' in page  # the square of slice 5, from (5, 5) on
    assert "Slice 5 of 5 · most tumor · Dice here 0.64" in text_of(page)  # 2·16 / (25 + 25)
    assert 'class="left"' not in page  # nobody knows how the slices lie


def test_an_archive_without_annotations_shows_predictions_alone(tmp_path: Path) -> None:
    page = page_of(small_run.write_small_run(tmp_path, ["A"], annotated=False))
    assert page.count('class="predicted"') == 3
    assert 'class="truth"' not in page
    assert "annotation" not in text_of(page)


def test_the_outline_is_that_of_the_final_mask(tmp_path: Path) -> None:
    how = Postprocessing(keep_largest=False, min_volume_ml=1000.0)  # nothing is so large
    page = page_of(small_run.write_small_run(tmp_path, ["A"], how=how))
    assert 'class="predicted"' not in page
    assert page.count('class="truth"') == 3
    assert "no tumor found, highest probability" in text_of(page)


def test_letters_say_where_the_sides_of_the_patient_are(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    (path,) = (tmp_path / "archive/series").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    affine = [[0, 0, 4, 0], [0, 4, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]]  # slice S, row P, column L
    rows[0]["affine"] = [float(x) for row in affine for x in row]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.ARCHIVE_SERIES), path)
    page = page_of(run)
    for side, letter in (("top", "A"), ("right", "L"), ("bottom", "P"), ("left", "R")):
        assert page.count(f'<span class="{side}">{letter}</span>') == 3


def test_ids_of_markup_are_text(tmp_path: Path) -> None:
    page = page_of(small_run.write_small_run(tmp_path, ["'A'", EVIL], lost=(("read", EVIL),)))
    assert page.count("<script") == 1
    assert text_of(page).count(EVIL) >= 3  # in the queue, in the table, as a reason


@pytest.mark.parametrize("fate", ["gone", "replaced"])
def test_without_its_archive_the_page_has_no_pictures_and_says_so(
    tmp_path: Path, fate: str
) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    shutil.rmtree(tmp_path / "archive")
    if fate == "replaced":
        small_run.scans.write(tmp_path / "archive", small_run.archive_slices("A"))
    page = page_of(run)
    assert "data:image/webp" not in page
    said = "now holds another archive" if fate == "replaced" else "the archive cannot be read"
    assert "No pictures, because" in text_of(page)
    assert said in text_of(page)


def test_a_damaged_patient_costs_no_other_its_pictures(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A", "B"])
    uri = store.join(
        str(tmp_path / "archive"), next(iter(read_info(str(tmp_path / "archive")).files))
    )
    table = pq.read_table(uri)
    ids = pa.array(["other" if one == "A_5" else one for one in table["slice_id"].to_pylist()])
    table = table.set_column(0, schema.ARCHIVE.field("slice_id"), ids)
    pq.write_table(table, uri, row_group_size=64)
    page = page_of(run)
    assert page.count("data:image/webp") == 3
    assert "No pictures: " in text_of(page)
    assert "slice 'A_5' is in masks/, but not in" in text_of(page)


def test_a_patient_whose_masks_are_gone_says_so(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    for path in Path(run, "masks").iterdir():
        path.unlink()
    assert "the masks of this patient are missing in masks/" in text_of(page_of(run))


def test_without_any_volume_the_figure_does_not_guess_why(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    path = Path(run, "volumes.parquet")
    table = pq.read_table(path)
    rows = [
        {**row, "tumor_volume_ml": None, "volume_note": "2 series"} for row in table.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    shown = text_of(page_of(run))
    assert "Tumor voxels of 1 patients; none has a volume in ml." in shown
    assert "no spacing" not in shown


def test_pictures_can_be_left_out(tmp_path: Path) -> None:
    page = page_of(small_run.write_small_run(tmp_path, ["A"]), "--without-pictures")
    assert "data:image/webp" not in page
    assert "written without pictures of patients" in text_of(page)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no results that jobs\.report knows") as refused:
        report.main([f"--run={tmp_path}"])
    assert refused.value.exit_code == 2


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    path = Path(run, "run.json")
    path.write_text(path.read_text().replace('"2026-01-02T21:30:00+00:00"', "null"))
    with pytest.raises(FingerprintError, match="is not finished"):
        report.main([f"--run={run}"])


def test_every_stage_on_the_page_of_faults_has_its_advice() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/overnight.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(quarantine.STAGES)


def test_the_most_frequent_reason_comes_first_and_blank_slices_last() -> None:
    stages = quarantine.group(
        [("blank", "b", "A")] * 9 + [("read", "r", "A"), ("read", "s", None), ("read", "s", "B")]
    )
    assert [stage.name for stage in stages] == ["read", "blank"]
    assert stages[0].cells == [["s", "2", "1", "B"], ["r", "1", "1", "A"]]


def test_speed_is_between_two_rows_and_a_new_call_begins_at_its_start() -> None:
    def row(second: int, slices: int, rate: float) -> dict[str, str]:
        time = f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+00:00"
        return {"time": time, "slices": str(slices), "slices_per_second": str(rate)}

    rows = [row(10, 100, 10.0), row(20, 300, 15.0), row(20, 300, 15.0), row(610, 400, 40.0)]
    # 100 in 10 s, 200 in the next 10 s; the second call began at 600 s.
    assert speed_points(rows) == [[(10.0, 10.0), (20.0, 20.0)], [(30.0, 40.0)]]


def change(patient: str, interval: str, *volumes: float | None, year: int = 2020) -> dict:
    first, second = volumes
    known = first is not None and second is not None
    return {
        "patient_id": patient,
        "interval": interval,
        "days": 366,
        "first_date": date(year, 1, 1),
        "second_date": date(year + 1, 1, 1),
        "first_volume_ml": first,
        "second_volume_ml": second,
        "difference_ml": second - first if known else None,
        "difference_percent": 100 * (second - first) / first if known else None,
        "difference_ml_per_month": 1.5 if known else None,
        "caution": None if known else "no spacing",
    }


def test_changes_over_time_have_a_chart_a_patient_and_a_table(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    rows = [
        change("A", "next", 10.0, 12.0),
        change("A", "next", 12.0, None, year=2021),
        change(EVIL, "next", 40.0, 20.0),
    ]
    table = pa.Table.from_pylist(rows, schema=schema.CHANGES)
    pq.write_table(table, Path(run, "changes.parquet"))
    page = page_of(run)
    assert text_of(page).index(f"{EVIL}: 2 studies") < text_of(page).index(
        "A: 3 studies, 1 without"
    )
    assert "A 2020-01-01 2021-01-01 366 10.0 12.0 +2.0 +20.0 +1.5" in text_of(page)
    assert f"12.0 {4 * DASH}no spacing" in text_of(page)
    assert page.count("<script") == 1


def test_ten_thousand_patients_make_a_page_that_opens(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    path = Path(run, "volumes.parquet")
    table = pq.read_table(path)
    (row,) = table.to_pylist()
    reasons = "mask jumps between slices 14 and 15, 15 and 16; tumor touches the image border"
    others = [
        {**row, "patient_id": f"P{n}", "review_score": 0.01, "review_reasons": reasons}
        for n in range(10_000)
    ]
    pq.write_table(pa.Table.from_pylist([row, *others], schema=table.schema), path)
    page = page_of(run)
    assert page.count("<tr>") == 1 + 10_000  # the header; one patient is left to volumes.csv
    assert "volumes.csv has all 10,001" in text_of(page)
    assert page.count('class="patient"') == 24
    assert len(page) < 4e6


@needs_chromium
def test_long_series_uids_and_ids_do_not_make_the_page_wider_than_a_phone(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["A"])
    path = Path(run, "volumes.parquet")
    table = pq.read_table(path)
    (row,) = table.to_pylist()
    reasons = f"series {'1.2.826.' * 8}: tumor touches the image border"
    rows = [{**row, "patient_id": "P" * 300, "review_reasons": reasons}]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    changes = pa.Table.from_pylist([change("P" * 99, "next", 1.0, 2.0)], schema=schema.CHANGES)
    pq.write_table(changes, Path(run, "changes.parquet"))
    page_of(run)
    with visit(Path(run, "report.html"), width=390) as visited:
        visited.page.get_by_text("tumor touches the image border").first.wait_for()
        assert visited.overflow() == 0
    with visit(Path(run, "report.html"), width=688) as visited:  # A4 without its margins
        visited.page.emulate_media(media="print")
        assert visited.overflow() == 0


@needs_chromium
def test_a_browser_shows_the_page_on_a_phone(tmp_path: Path) -> None:
    run = small_run.write_small_run(tmp_path, ["'A'", EVIL, "P" * 80], lost=(("read", "x" * 200),))
    page_of(run)
    with visit(Path(run, "report.html"), width=390) as visited:
        page = visited.page
        assert visited.overflow() == 0
        assert visited.broken_images() == 0
        assert page.locator(".slice img").count() == 9
        page.get_by_text(EVIL).first.wait_for()
        page.locator("#table a", has_text="alert").click()
        assert page.locator(".patient:target h3").text_content() == EVIL
        outline = page.locator(".predicted path, path.predicted").first
        assert outline.is_visible()
        frame = page.locator(".frame").nth(1)
        small = frame.bounding_box()["width"]
        frame.click()
        assert frame.bounding_box()["width"] > 1.2 * small
        assert visited.overflow() == 0
        frame.press("Enter")
        assert frame.bounding_box()["width"] == small
        page.get_by_label("outlines").uncheck()
        assert not outline.is_visible()
        assert visited.errors == []
        assert visited.foreign_requests == []
