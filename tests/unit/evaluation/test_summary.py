import re
from dataclasses import replace

import pytest

from segmodel.evaluation.cases import Case
from segmodel.evaluation.paper_table import markdown, number, tables
from segmodel.evaluation.statistics import Agreement
from segmodel.evaluation.summary import differences, groups_of, summary_json


def case(patient: str = "A", dice: float = 0.5, seen: str = "no", **changes: object) -> Case:
    """100 tumor voxels of 1 mm3; 60 predicted, 40 of them right: Dice is what the test says."""
    made = Case(
        segmentation="run",
        patient_id=patient,
        series_id=patient,
        seen_in_training=seen,
        slices=10,
        slices_without_truth=0,
        slices_not_segmented=0,
        dice=dice,
        iou=0.4,
        precision=0.6,
        recall=0.4,
        unit="mm",
        hd95=4.0,
        average_surface_distance=1.0,
        nsd=0.7,
        true_voxels=100,
        predicted_voxels=60,
        shared_voxels=40,
        voxels=1000,
        true_ml=0.1,
        predicted_ml=0.06,
        volume_error_ml=-0.04,
        absolute_volume_error_ml=0.04,
        relative_volume_error=-0.4,
        lesions=2,
        lesions_found=1,
        lesions_invented=3,
    )
    return replace(made, **changes)


def empty(patient: str, dice: float) -> Case:
    """A patient without tumor."""
    return case(
        patient,
        dice,
        true_voxels=0,
        shared_voxels=0,
        predicted_voxels=0 if dice else 10,
        hd95=None,
        nsd=None if dice else 0.0,
        true_ml=0.0,
        lesions=0,
        lesions_found=0,
    )


def test_patients_seen_in_training_are_never_mixed_with_others() -> None:
    cases = [case("A", 0.5), case("B", 0.9, "train"), case("C", 0.7, "validation")]
    found = {group.name: group.all_patients["dice"].mean for group in groups_of(cases)}
    assert found == {
        "unseen": 0.5,
        "chose the epoch (validation)": 0.7,
        "learned from (train)": 0.9,
    }


def test_the_mean_over_patients_with_tumor_stands_beside_that_over_all() -> None:
    (group,) = groups_of([case("A", 0.5), empty("B", 1.0), empty("C", 0.0)])
    assert group.all_patients["dice"].mean == pytest.approx(0.5)  # (0.5 + 1 + 0) / 3
    assert group.tumor_patients["dice"].mean == 0.5
    assert (group.patients, group.with_tumor) == (3, 1)
    assert group.no_distance == 1  # C: predicted tumor where there is none


def test_pooled_dice_counts_voxels_and_not_patients() -> None:
    (group,) = groups_of([case("A"), empty("B", 0.0)])
    assert group.pooled_dice == pytest.approx(2 * 40 / (100 + 60 + 10))


def test_a_patient_with_two_series_counts_once() -> None:
    cases = [case("A", 0.4), case("A", 0.6, series_id="later"), case("B", 0.9)]
    (group,) = groups_of(cases)
    assert group.all_patients["dice"].mean == pytest.approx((0.5 + 0.9) / 2)


def test_distances_in_mm_and_in_voxels_are_not_averaged() -> None:
    (group,) = groups_of([case("A"), case("B", unit="voxel")])
    assert group.distance_unit == "mixed"
    assert group.all_patients["hd95"].count == 0
    assert group.all_patients["dice"].count == 2


def test_summary_json_and_differences_have_no_mean_of_mm_and_voxels() -> None:
    cases = [case("A"), case("B", unit="voxel")]
    means = summary_json(cases, groups_of(cases), "")["foreground_mean"]
    assert [means[name] for name in ("HD95", "ASSD", "NSD")] == [None, None, None]
    assert means["Dice"] == 0.5
    found = differences(cases, cases)
    assert [found[name]["all"].count for name in ("hd95", "nsd", "dice")] == [0, 0, 2]
    table = markdown(tables({"one": groups_of(cases)}, {}), "")
    assert "No mean of HD95, ASSD and NSD: some are in mm, others in voxels" in table
    same = [case("A"), case("B")]
    assert summary_json(same, groups_of(same), "")["foreground_mean"]["HD95"] == 4.0
    made = tables(
        {"one": groups_of(same), "two": groups_of(same)}, {"two": differences(same, same)}
    )
    assert "| HD95 (mm) | 2 | 0.000 (0.000 to 0.000) |" in " ".join(markdown(made, "").split())
    assert "No mean" not in markdown(made, "")


def test_differences_are_of_patients_that_neither_model_has_seen() -> None:
    first = [case("A", 0.5), case("B", 0.5), case("C", 0.5, "train")]
    second = [case("A", 0.6), case("B", 0.9, "validation"), case("C", 0.9)]
    found = differences(first, second)["dice"]["all"]
    assert (found.count, found.mean) == (1, pytest.approx(0.1))


def test_patients_that_the_checkpoint_does_not_tell_of_are_a_group_of_their_own() -> None:
    first, second = groups_of([case("A", 0.5, "unknown"), case("B", 0.9)])
    assert (first.name, first.all_patients["dice"].mean) == ("unseen", 0.9)
    assert second.name.startswith("perhaps seen")
    assert second.all_patients["dice"].mean == 0.5


def test_the_volumes_of_a_patient_with_two_series_count_once() -> None:
    cases = [
        case("A", true_ml=1.0, predicted_ml=2.0),
        case("A", true_ml=3.0, predicted_ml=2.0, series_id="later"),
        case("B", true_ml=5.0, predicted_ml=6.0),
    ]
    (group,) = groups_of(cases)
    # A: 2 and 2, B: 5 and 6.
    assert (group.volumes.count, group.volumes.bias, group.volume_unit) == (2, 0.5, "ml")


def test_without_any_spacing_volumes_are_compared_in_voxels() -> None:
    unknown = {"true_ml": None, "predicted_ml": None}
    (group,) = groups_of([case("A", **unknown), case("B", **unknown)])
    assert (group.volume_unit, group.volumes.count, group.volumes.bias) == ("voxel", 2, -40)
    (group,) = groups_of([case("A", **unknown), case("B")])
    assert (group.volume_unit, group.volumes.count) == ("ml", 1)


def test_the_means_of_summary_json_leave_out_patients_seen_in_training() -> None:
    cases = [case("A", 0.5), case("B", 0.9, "train")]
    found = summary_json(cases, groups_of(cases), "definitions")
    assert (found["mean_of"], found["foreground_mean"]["Dice"]) == ("unseen", 0.5)
    assert len(found["metric_per_case"]) == 2
    cases = [case("B", 0.9, "train"), case("C", 0.7, "validation")]
    found = summary_json(cases, groups_of(cases), "definitions")
    assert found["foreground_mean"]["Dice"] == 0.7
    assert found["mean_of"] == "chose the epoch (validation)"


def test_summary_json_has_the_keys_of_nnu_net() -> None:
    cases = [case("A", 0.5), empty("B", 1.0)]
    found = summary_json(cases, groups_of(cases), "definitions")
    assert found["foreground_mean"]["Dice"] == 0.75
    assert found["foreground_mean"]["HD95"] == 4.0  # of the one that has it
    first = found["metric_per_case"][0]["metrics"]["1"]
    counted = {name: first[name] for name in ("TP", "FP", "FN", "TN", "n_ref", "n_pred")}
    assert counted == {"TP": 40, "FP": 20, "FN": 60, "TN": 880, "n_ref": 100, "n_pred": 60}


def test_the_table_has_a_column_for_each_segmentation() -> None:
    first, second = [case("A", 0.5), case("B", 0.6)], [case("A", 0.7), case("B", 0.8)]
    made = tables(
        {"one": groups_of(first), "two|": groups_of(second)}, {"two|": differences(first, second)}
    )
    table = markdown(made, "How it was measured.")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:6]}) == 1  # the columns are below each other
    table = re.sub(" +", " ", table)
    assert "| | one | two\\| |" in table
    assert "| Dice, all patients | 0.550 (0.500 to 0.600) | 0.750 (0.700 to 0.800) |" in table
    assert "| Dice | 2 | 0.200 (0.200 to 0.200) | 0.5 |" in table
    assert table.endswith("How it was measured.\n")


def test_rows_of_which_nothing_is_known_are_left_out_of_the_table() -> None:
    unknown = {"volume_error_ml": None, "absolute_volume_error_ml": None}
    (table,) = tables({"one": groups_of([case("A", **unknown), case("B", **unknown)])}, {})
    names = [row[0] for row in table.rows]
    assert "HD95 (mm), patients with tumor" in names
    assert not [name for name in names if name.startswith(("Volume error", "Absolute"))]


def test_without_a_patient_unseen_by_both_the_table_says_so() -> None:
    first = second = [case("A", 0.5, "train")]
    made = tables(
        {"one": groups_of(first), "two": groups_of(second)}, {"two": differences(first, second)}
    )
    table = markdown(made, "")
    assert "no patient that neither model has seen" in table


def test_numbers_have_the_digits_that_they_mean() -> None:
    assert [number(value) for value in (0.12345, 58.583331, -1278.4, None)] == [
        "0.123",
        "58.6",
        "-1,278",
        "n/a",
    ]


def test_figures_of_one_cell_have_the_digits_of_the_largest() -> None:
    volumes = Agreement(
        9, bias=-0.313, lower_limit=-10_310.2, upper_limit=10_325.4, concordance=0.5
    )
    (group,) = groups_of([case("A", hd95=8.25), case("B", hd95=104.0)])
    (table,) = tables({"one": [replace(group, volumes=volumes)]}, {})
    cells = dict(table.rows)
    assert cells["Volume bias (limits of agreement), ml"] == "0 (-10,310 to 10,325)"
    assert cells["HD95 (mm), patients with tumor"] == "56.1 (8.2 to 104.0)"
