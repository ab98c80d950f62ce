import pytest

from segmodel.core.rounding import ml_text, rounded


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("tumor_volume_ml", 58.583331936597824, 58.6),
        ("tumor_volume_ml", 12.345678, 12.35),  # 12.3 would be 0.4 % off
        ("tumor_volume_ml", 0.0123456, 0.01235),
        ("tumor_volume_ml", 0.0, 0.0),
        ("tumor_volume_mm3", 58583.331936597824, 58583),
        ("tumor_volume_mm3", 4.125, 4.125),  # 4.12 would be 0.12 % off
        ("difference_ml", -58.583, -58.6),
        ("estimated_dice", 0.87654, 0.877),
        ("review_score", 0.12345, 0.123),
        ("seconds", 1.23456, 1.23456),
    ],
)
def test_a_number_is_rounded_to_what_its_unit_means(
    column: str, value: float, expected: float
) -> None:
    assert rounded(column, value) == expected


def test_rounding_changes_no_volume_by_more_than_a_thousandth() -> None:
    for exponent in range(-4, 5):
        for leading in range(1000, 10_000, 7):
            volume = leading * 1.000321 * 10.0 ** (exponent - 3)
            for column in ("a_ml", "a_mm3"):
                assert abs(rounded(column, volume) - volume) <= 0.001 * volume


def test_a_number_that_is_none_stays() -> None:
    assert str(rounded("a_ml", float("nan"))) == "nan"


def test_a_volume_in_a_text_has_its_unit() -> None:
    assert ml_text(1234.56) == "1,234.6 ml"
