"""Records which series of a DICOM study were chosen: `schema.SERIES_CHOICES` without patients."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime

from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.series_rules import SeriesRules, Verdict


def by_series(images: Sequence[ImageHeader]) -> list[list[ImageHeader]]:
    """The images of each series, sorted by its UID."""
    found: dict[str, list[ImageHeader]] = defaultdict(list)
    for image in images:
        found[image.series_uid].append(image)
    return [found[uid] for uid in sorted(found)]


def leave_out(
    series: Sequence[ImageHeader], rules: SeriesRules
) -> tuple[list[dict[str, object]], list[ImageHeader]]:
    """A row for each reason to leave images of a series out, and the images that are left."""
    reasons: dict[str, list[ImageHeader]] = defaultdict(list)
    kept = []
    for image in series:
        reason = rules.why_left_out(image)
        if reason is None:
            kept.append(image)
        else:
            reasons[reason].append(image)
    rows = [
        {**_columns(images[0]), "images": len(images), "chosen": False, "because": reason}
        for reason, images in reasons.items()
    ]
    return rows, kept


def counted_reasons(rows: Sequence[Mapping[str, object]]) -> str:
    """How many images `leave_out` left out for which reason, in words."""
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons[str(row["because"])] += int(str(row["images"]))
    return ", ".join(f"{count} images: {why}" for why, count in sorted(reasons.items()))


def stack_row(verdict: Verdict) -> dict[str, object]:
    """The row of a stack that was judged."""
    stack = verdict.stack
    return {
        **_columns(stack.first),
        "part": stack.part or None,
        "images": len(stack.images),
        "plane": stack.grid.plane(0),
        "spacing_mm": list(stack.grid.spacing_mm),
        "sequence": verdict.sequence,
        "chosen": verdict.chosen,
        "because": verdict.because,
    }


def _columns(image: ImageHeader) -> dict[str, object]:
    """The columns of `schema.SERIES_CHOICES` that say which series an image is of."""
    return {
        "study_id": image.study_uid,
        "study_date": to_date(image.study_date),
        "series_uid": image.series_uid,
        "series_number": image.series_number,
        "description": image.description,
    }


def study_name(image: ImageHeader) -> str:
    """The study of an image, for people: its date, if it is known, and its UID."""
    day = to_date(image.study_date)
    return f"study of {day}, {image.study_uid}" if day else f"study {image.study_uid}"


def to_date(text: str | None) -> date | None:
    """A date as DICOM writes it, YYYYMMDD; None where it is none."""
    if len(text or "") != 8:  # strptime would read 2020131, too: as some date
        return None
    try:
        return datetime.strptime(text or "", "%Y%m%d").date()
    except ValueError:
        return None
