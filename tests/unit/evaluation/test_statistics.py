import numpy as np
import pytest

from segmodel.evaluation.statistics import agreement, distribution, paired_difference


def test_quartiles_and_mean_of_five_values() -> None:
    found = distribution([0.5, 0.7, None, 0.9, 0.6, 0.8])
    assert (found.count, found.mean, found.median) == (5, pytest.approx(0.7), 0.7)
    assert (found.first_quartile, found.third_quartile) == (0.6, 0.8)
    assert found.std == pytest.approx(0.158114, abs=1e-6)


def test_the_bootstrap_interval_is_near_the_normal_one_and_the_same_every_time() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 400).tolist()
    found = distribution(values)
    half = 1.96 * np.std(values) / 20
    assert found.low == pytest.approx(np.mean(values) - half, abs=0.001)
    assert found.high == pytest.approx(np.mean(values) + half, abs=0.001)
    assert distribution(values) == found


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = distribution([0.8, 0.8, 0.8])
    assert (found.low, found.high) == (pytest.approx(0.8), pytest.approx(0.8))


def test_one_patient_has_a_mean_and_no_interval() -> None:
    found = distribution([0.8])
    assert (found.mean, found.low, found.high, found.std) == (0.8, None, None, None)
    assert distribution([None]).mean is None


def test_bland_altman_limits_worked_out_by_hand() -> None:
    found = agreement([10, 20, 30], [11, 22, 33])  # differences 1, 2, 3: sd 1
    assert found.bias == pytest.approx(2)
    assert (found.lower_limit, found.upper_limit) == (pytest.approx(0.04), pytest.approx(3.96))


def test_lin_s_concordance_worked_out_by_hand() -> None:
    # Variances 2/3 and 2/3, covariance 2/3, means 1 apart: 2 * 2/3 / (4/3 + 1) = 4/7.
    assert agreement([1, 2, 3], [2, 3, 4]).concordance == pytest.approx(4 / 7)
    assert agreement([1, 2, 3], [1, 2, 3]).concordance == pytest.approx(1)
    assert agreement([5, 5], [5, 5]).concordance is None


def test_a_paired_difference_uses_the_patients_that_have_both() -> None:
    found = paired_difference([0.5, 0.6, None, 0.7], [0.6, 0.7, 0.9, None])
    assert (found.count, found.mean) == (2, pytest.approx(0.1))


def test_no_difference_at_all_has_p_1() -> None:
    assert paired_difference([0.5, 0.6], [0.5, 0.6]).wilcoxon_p == 1


def test_six_differences_of_one_sign_have_the_exact_p_of_the_signed_rank_test() -> None:
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    second = [a + d for a, d in zip(first, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06], strict=True)]
    assert paired_difference(first, second).wilcoxon_p == pytest.approx(2 / 2**6)
