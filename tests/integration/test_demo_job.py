"""jobs.demo from end to end, smaller than users run it."""

from pathlib import Path

import pytest
from PIL import Image

from jobs import demo
from segmodel import demo as library


@pytest.mark.usefixtures("local_ray")
def test_the_demo_ends_with_a_picture_and_says_where_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("PATIENTS", 5), ("SLICES", 6), ("SIZE", 32), ("EPOCHS", 1)):
        monkeypatch.setattr(library, name, value)
    assert demo.main(["--output", str(tmp_path), "--tracking", "none"]) == 0
    printed = capsys.readouterr().out
    for path in ("contact-sheet.png", "run/volumes.csv", "run/masks", "model/best", "archive"):
        assert f"{tmp_path}/{path}" in printed
        assert (tmp_path / path).exists()
    with Image.open(tmp_path / "contact-sheet.png") as picture:
        assert min(picture.size) > 300
    assert printed.count("PHANTOM_") == 5
