"""The page of an evaluation: what it says, which patients it shows, and without pictures."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import report
from segmodel.core.errors import ConfigError
from segmodel.evaluation import driver
from segmodel.report import evaluation_figures
from segmodel.report.evaluation_data import EvaluationData
from segmodel.report.evaluation_figures import Agreement
from segmodel.report.evaluation_patients import choose_patients, ranked_by
from segmodel.report.evaluation_slices import choose
from segmodel.settings.evaluate import EvaluateConfig
from tests.support.browser import needs_chromium, visit
from tests.support.scans import scans, write
from tests.support.segmented import write_run
from tests.unit.report.test_segmentation_page import text_of

EVIL = "<script>alert('x')</script>\"&"


def annotated(patient: str, tumor_rows: int) -> pa.Table:
    """Four slices of 4x4 pixels of 1x1x5 mm; the second has tumor in its first rows."""
    slices = scans(patient, 4)
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, :tumor_rows] = 1
    column = slices.schema.get_field_index("mask")
    values = pa.array([one.tobytes() for one in mask], pa.binary())
    return slices.set_column(column, slices.schema.field(column), values)


def rows_of(count: int) -> np.ndarray:
    mask = np.zeros((4, 4), bool)
    mask[:count] = True
    return mask


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluations of a segmentation, `alone`, and of two, `both`, made without Ray.

    Tumor is 2 rows of 4 pixels. `one` finds all of A, 1 row of B and 3 rows of a patient whose id
    is markup; the model has learned from C. `two` finds 1 row of everybody.
    """
    folder = tmp_path_factory.mktemp("evaluations")
    archive = folder / "archive"
    patients = [EVIL, "A", "B", "C"]
    write(archive, *(annotated(patient, 2) for patient in patients))
    seen = {EVIL: "no", "A": "no", "B": "no", "C": "train"}
    for name, found in (("one", [3, 2, 1, 2]), ("two", [1, 1, 1, 1])):
        masks = {
            f"{patient}_{index}": rows_of(rows if index == 2 else 0)
            for patient, rows in zip(patients, found, strict=True)
            for index in range(1, 5)
        }
        write_run(folder / name, archive, masks, seen)

    def here(function: Callable[..., Any], items: Iterable[Any], *shared: object) -> Iterator[Any]:
        return (function(item, *shared) for item in items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "map_on_ray", here)
        patch.setattr(driver.ray_cluster, "connect", nullcontext)
        for output, runs in (("alone", ["one"]), ("both", ["one", "two"])):
            config = EvaluateConfig(
                archive=str(archive),
                segmentation=",".join(str(folder / run) for run in runs),
                output=str(folder / output),
                tracking="none",
            )
            driver.evaluate(config)
    return folder


@pytest.fixture
def alone(evaluations: Path, tmp_path: Path) -> Path:
    """A copy of the evaluation `alone`, to be changed."""
    return Path(shutil.copytree(evaluations / "alone", tmp_path / "alone"))


def page_of(evaluation: Path) -> str:
    return (evaluation / "report.html").read_text()


def test_the_page_keeps_patients_of_the_training_apart(evaluations: Path) -> None:
    text = text_of(page_of(evaluations / "alone"))
    # Dice: the evil id 2*8/(8+12) = 0.8, A 1, B 2*4/(8+4) = 0.667; their mean is 0.822.
    for words in (
        "3 patients, unseen",
        "0.822 mean Dice",
        "those of the first group, “Unseen patients”; means are over its patients with tumor",
        "Unseen patients one Patients (with tumor) 3 (3)",
        "Patients that the model was trained on one Patients (with tumor) 1 (1)",
        "Lin's concordance",
        "26-connected",
        str(evaluations / "one"),
    ):
        assert words in text, words


def test_best_median_and_worst_patients_have_slices(evaluations: Path) -> None:
    text = text_of(page_of(evaluations / "alone"))
    # 8 voxels of 5 cubic millimetres
    assert "best A Dice 1.000 · HD95 0.0 mm · NSD 1.00 · 0.04 ml, predicted 0.04 ml" in text
    assert "worst B Dice 0.667" in text
    assert "Slice 2 of 4 · most tumor · Dice here 0.67" in text


def test_several_segmentations_stand_side_by_side(evaluations: Path) -> None:
    page = page_of(evaluations / "both")
    text = text_of(page)
    assert "0.822 mean Dice, one" in text
    assert "0.667 mean Dice, two" in text
    assert "two minus one, patients with tumor that neither model has seen" in text
    assert "Slice 2 of 4 · one: most tumor" in text
    assert "Slice 2 of 4 · two: most tumor" in text
    assert page.count("<img") == 2 * 3  # one slice of three patients


def test_ids_with_markup_are_text(evaluations: Path) -> None:
    page = page_of(evaluations / "both")
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(" in page


def test_jobs_report_writes_it_anew_without_pictures(alone: Path) -> None:
    assert "<img" in page_of(alone)
    assert report.main([f"--run={alone}", "--tracking=none", "--without-pictures"]) == 0
    assert "<img" not in page_of(alone)
    assert "0.822 mean Dice" in text_of(page_of(alone))


def test_without_the_archive_the_page_has_no_pictures_and_says_so(alone: Path) -> None:
    path = alone / "evaluation.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"archive": "/gone"}))
    assert report.main([f"--run={alone}", "--tracking=none"]) == 0
    assert "<img" not in page_of(alone)
    text = text_of(page_of(alone))
    assert "No pictures, because the archive cannot be read." in text
    assert "0.822 mean Dice" in text


def test_a_damaged_evaluation_is_an_error_that_says_what_to_do(alone: Path) -> None:
    (alone / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"jobs\.evaluate command again with --overwrite"):
        report.main([f"--run={alone}", "--tracking=none"])


def test_an_evaluation_whose_table_was_cut_off_is_not_shown_as_if_it_were_whole(
    alone: Path,
) -> None:
    table = alone / "patients.csv"
    table.write_text(table.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ConfigError, match=r"patients\.csv has 0 rows, not \d.*--overwrite"):
        report.main([f"--run={alone}"])


def test_patients_are_ranked_by_the_first_segmentation_that_has_unseen_ones() -> None:
    row = {"series_id": "A", "unit": "mm", "hd95": None, "nsd": None, "true_ml": None}
    row |= {"patient_id": "A", "true_voxels": 8.0, "predicted_voxels": 8.0}
    names = {"no": "unseen", "train": "learned from"}
    data = EvaluationData(
        archive="/a",
        segmentations={"one": "/one", "two": "/two"},
        tolerance_mm=1.0,
        tables=[],
        groups={
            segmentation: [{"name": names[seen], "seen_in_training": [seen]}]
            for segmentation, seen in (("one", "train"), ("two", "no"))
        },
        rows=[
            {**row, "segmentation": "one", "seen_in_training": "train", "dice": 0.9},
            {**row, "segmentation": "two", "seen_in_training": "no", "dice": 0.5},
        ],
        not_compared=[],
    )
    assert ranked_by(data) == "two"
    (shown,) = choose_patients(data, None)
    assert [text.split(" · ")[0] for _, text in shown.facts] == ["Dice 0.900", "Dice 0.500"]


def test_slices_are_chosen_by_tumor_by_what_is_missed_and_by_what_is_invented() -> None:
    truth, predicted = np.zeros((9, 4, 4), bool), np.zeros((9, 4, 4), bool)
    truth[1:4] = predicted[1:3] = True  # slice 3 is missed, and next to the first of the largest
    truth[6, 0] = True  # missed
    predicted[8] = True  # invented
    assert choose(truth, predicted, 3) == [
        (1, "most tumor"),
        (3, "most missed"),
        (8, "most invented"),
    ]
    assert choose(truth, predicted, 1) == [(1, "most tumor")]
    nothing = np.zeros((5, 4, 4), bool)
    assert choose(nothing, nothing, 3) == [(2, "no tumor in either mask")]


def test_a_figure_of_many_patients_stays_small() -> None:
    dice = {f"P{n}": (n % 97) / 97 for n in range(10_000)}
    svg = evaluation_figures.dice_by_patient({"one": dice, "two": dice}, "Dice")
    assert "10,000 patients" in svg
    assert len(svg) < 300_000
    pairs = [(float(n), 1.1 * n) for n in range(10_000)]
    limits = Agreement(1.0, -2.0, 4.0)
    assert len(evaluation_figures.bland_altman(pairs, limits, "ml", "agreement")) < 100_000


@pytest.mark.filterwarnings("error")
def test_a_long_id_is_cut_and_leaves_room_for_the_figure() -> None:
    svg = evaluation_figures.dice_by_patient({"one": {"x" * 300: 0.5, "y" * 40: 0.6}}, "Dice")
    assert f">{'x' * 39}…<" in svg
    assert f">{'y' * 40}<" in svg


def test_bland_altman_draws_bias_and_limits_with_their_values() -> None:
    svg = evaluation_figures.bland_altman(
        [(1.0, 2.0), (3.0, 3.5)], Agreement(0.75, 0.1, 1234.5), "ml", "agreement"
    )
    for text in ("bias", "0.8", "1.96 SD", "0.1", "1,234"):
        assert f">{text}<" in svg or text in svg, text


@needs_chromium
def test_a_browser_shows_it_whole_and_without_errors(evaluations: Path) -> None:
    with visit(evaluations / "both" / "report.html", width=390) as visited:
        cells = visited.page.locator("#table tbody tr:not([hidden]) td:first-child")
        assert cells.count() == 8
        visited.page.get_by_role("searchbox").first.fill("learned")
        assert cells.all_text_contents() == ["C", "C"]
        assert visited.overflow() == 0
        assert visited.broken_images() == 0
        assert visited.errors == []
        assert visited.foreign_requests == []
