from typing import Any

import numpy as np
import pytest

from segmodel.analysis.review import Finding, estimate_dice, modified_z, review


def finding(patient: str = "A", **changes: Any) -> Finding:
    usual = {
        "slices": 20,
        "missing": 0,
        "duplicated": 0,
        "tumor_voxels": 500,
        "volume_ml": 50.0,
        "largest_piece_voxels": None,
        "estimated_dice": 0.9,
    }
    return Finding(patient_id=patient, **{**usual, "touches_border": False, "jumps": (), **changes})


def cohort(patients: int, **last: Any) -> list[Finding]:
    """Volumes 50, 51, 52, … ml, but for the last patient."""
    usual = [finding(f"P{n}", volume_ml=50.0 + n) for n in range(patients - 1)]
    return [*usual, finding("last", **last)]


def test_the_score_is_what_the_model_expects_to_be_wrong() -> None:
    (one,) = review([finding(estimated_dice=0.9)])
    assert (one.score, one.reasons) == (0.1, ())


def test_reasons_are_said_and_change_no_score() -> None:
    (one,) = review([finding(missing=3, touches_border=True)])
    assert one.score == 0.1
    assert len(one.reasons) == 2


def test_with_a_mask_the_estimate_is_the_mean_probability_in_it() -> None:
    # 1,000 voxels of mask with p = 0.9.
    assert estimate_dice(900, 900, 1000) == 0.9


def test_background_with_tiny_probabilities_does_not_count_against_a_mask() -> None:
    # The same mask in 2 million voxels of background with p = 0.001 each.
    assert estimate_dice(900 + 2000, 900, 1000) == 0.9


def test_without_a_mask_the_estimate_falls_with_what_the_model_half_sees() -> None:
    healthy, smallest_tumor = estimate_dice(5, 0, 0), estimate_dice(100, 0, 0)
    assert healthy == pytest.approx(100 / 105)
    assert smallest_tumor == 0.5
    assert estimate_dice(300, 0, 0) == 0.25


def test_an_overlooked_tumor_comes_before_a_good_mask_and_a_healthy_patient_after_it() -> None:
    overlooked, good, healthy = review(
        [
            finding(tumor_voxels=0, volume_ml=0.0, estimated_dice=estimate_dice(300, 0, 0)),
            finding(estimated_dice=estimate_dice(5000, 4500, 5000)),
            finding(tumor_voxels=0, volume_ml=0.0, estimated_dice=estimate_dice(5, 0, 0)),
        ]
    )
    assert overlooked.score > good.score > healthy.score


def test_a_mask_larger_than_any_glioma_is_named_and_early_in_the_queue() -> None:
    (huge,) = review([finding(volume_ml=1500.0, estimated_dice=0.95)])
    assert huge.reasons == ("volume is larger than gliomas get (1,500.0 ml)",)
    # Were all of a tumor of 500 ml in it, its Dice would be 2 * 500 / (1500 + 500).
    assert huge.score == 0.5


def test_a_tumor_of_the_largest_volume_is_no_reason() -> None:
    (one,) = review([finding(volume_ml=500.0)])
    assert (one.score, one.reasons) == (0.1, ())


def test_a_mask_in_pieces_is_named_and_has_at_most_the_dice_of_its_largest_piece() -> None:
    (two,) = review([finding(tumor_voxels=1000, largest_piece_voxels=600)])
    assert two.reasons == ("mask is in pieces: the largest holds 60% of it",)
    # Were the tumor the largest piece alone, the Dice would be 2 * 600 / (1000 + 600).
    assert two.score == 0.25


def test_a_speck_beside_the_tumor_changes_nothing() -> None:
    (one,) = review([finding(tumor_voxels=1000, largest_piece_voxels=990)])
    assert (one.score, one.reasons) == (0.1, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"missing": 1}, "1 slice missing"),
        ({"missing": 3}, "3 slices missing"),
        ({"duplicated": 2}, "2 slices duplicated"),
        ({"tumor_voxels": 0, "volume_ml": 0.0}, "no tumor found"),
        ({"touches_border": True}, "tumor touches the image border"),
        (
            {"estimated_dice": 0.456},
            "the model is unsure of its mask: it expects a Dice of 0.46",
        ),
        ({"jumps": (7,)}, "mask jumps between slices 7 and 8"),
        (
            {"jumps": (1, 3, 5, 7, 9)},
            "mask jumps between slices 1 and 2, 3 and 4, 5 and 6 and 2 more",
        ),
    ],
)
def test_what_is_odd_in_a_series_alone_is_said_in_words(
    changes: dict[str, Any], reason: str
) -> None:
    assert review([finding(**changes)])[0].reasons == (reason,)


def test_a_series_without_slices_is_looked_at_first_of_all_with_two_reasons() -> None:
    nothing = finding(slices=0, missing=4, tumor_voxels=0, volume_ml=None, estimated_dice=None)
    (one,) = review([nothing])
    assert one.reasons == ("no slice could be segmented", "4 slices missing")
    assert one.score == 1


def test_a_volume_far_from_those_of_the_cohort_is_an_outlier_in_either_direction() -> None:
    for volume in (5.0, 500.0):
        *others, odd = review(cohort(11, volume_ml=volume))
        # 11 volumes: 50 … 59 and the odd one; the sixth is the median
        median = 54 if volume == 5.0 else 55
        assert odd.reasons == (
            f"volume is an outlier of this cohort ({volume} ml, the median is {median}.0 ml)",
        )
        assert all(other.reasons == () for other in others)


def test_nine_patients_are_no_cohort_even_with_many_series() -> None:
    assert review(cohort(9, volume_ml=500.0))[-1].reasons == ()
    assert review([*cohort(9, volume_ml=500.0), finding("P1"), finding("P2")])[8].reasons == ()


def test_volumes_that_are_null_or_zero_are_in_no_cohort() -> None:
    unknown = [finding(f"U{n}", volume_ml=None) for n in range(10)]
    assert review([*unknown, *cohort(9, volume_ml=500.0)])[-1].reasons == ()


def test_modified_z_is_the_distance_from_the_median_in_robust_deviations() -> None:
    z_n = modified_z(
        np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    )  # median 3, distances 2 1 0 1 7, their median 1
    assert z_n.tolist() == pytest.approx([-1.349, -0.6745, 0.0, 0.6745, 4.7215])
    assert modified_z(np.array([1.0, 1.0, 1.0, 9.0])).tolist() == [0, 0, 0, 0]
