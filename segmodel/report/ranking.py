"""Which patients of a ranking are shown."""

BEST, MEDIAN, WORST = 2, 2, 4
"""Patients of each kind, where there are enough of them."""


def places(count: int) -> dict[int, str]:
    """Which places of a ranking, best first, are shown, and the label of each.

    Of up to eight patients only the best, the median and the worst are shown.

    Args:
        count: of the patients.
    """
    few = count <= BEST + MEDIAN + WORST
    best, median, worst = (1, 1, 1) if few else (BEST, MEDIAN, WORST)
    middle = (count - median + 1) // 2
    found = {middle + number: "median" for number in range(median)}
    found |= {count - 1 - number: "worst" for number in range(worst)}
    found |= dict.fromkeys(range(best), "best")
    return {place: found[place] for place in sorted(found) if 0 <= place < count}
