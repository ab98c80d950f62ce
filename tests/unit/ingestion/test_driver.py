"""The parts of an ingest that need no Ray."""

import errno
import os
from pathlib import Path

import pytest

from segmodel.core.errors import DiskFullError
from segmodel.ingestion import driver
from tests.support.scans import scans, write


@pytest.mark.parametrize(
    ("before", "kept"),
    [(False, "what was read is kept"), (True, "the archive that was there is as it was")],
)
def test_a_full_disk_is_named_with_what_is_kept_and_what_to_do(
    tmp_path: Path, before: bool, kept: str
) -> None:
    if before:
        write(tmp_path, scans("A", 1))
    with (
        pytest.raises(DiskFullError, match=rf"^{tmp_path}: no space is left .*{kept}") as full,
        driver._full_disk_explained(str(tmp_path)),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "give the same command again: it goes on from there" in str(full.value)


def test_other_errors_of_a_disk_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="Stale") as raised,
        driver._full_disk_explained(str(tmp_path)),
    ):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    assert not isinstance(raised.value, DiskFullError)
