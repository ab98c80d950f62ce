"""Numbers as people read them: rounded by the unit that a column's name ends in."""

import math

MAX_ERROR = 0.001
"""Share of a volume by which rounding may change it."""
SCORE_DECIMALS = 3
_LEAST_DECIMALS = {"_mm3": 0, "_ml": 1, "_ml_per_month": 1, "_percent": 1}
_SCORES = ("dice", "score")


def rounded(column: str, value: float) -> float:
    """Round a number as the CSV files do.

    Volumes in ml get one decimal and those in mm³ none, or as many more as keep the error below
    `MAX_ERROR`. Scores and Dice get `SCORE_DECIMALS`. Other columns stay as they are.

    Args:
        column: its name, which ends in the unit.
        value: of the column.
    """
    if column.endswith(_SCORES):
        return round(value, SCORE_DECIMALS)
    for unit, least in _LEAST_DECIMALS.items():
        if column.endswith(unit):
            return _within_error(value, least)
    return value


def ml_text(volume_ml: float) -> str:
    """A volume for a line of text, such as `58.6 ml`."""
    return f"{rounded('_ml', volume_ml):,} ml"


def _within_error(value: float, decimals: int) -> float:
    if not math.isfinite(value) or value == 0:
        return value
    # Half a unit of the last decimal is the most that rounding changes.
    while 0.5 * 10.0**-decimals > MAX_ERROR * abs(value):
        decimals += 1
    return round(value, decimals)
