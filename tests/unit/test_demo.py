from pathlib import Path

import pytest

from segmodel.core.errors import ConfigError
from segmodel.demo import demo
from segmodel.settings.demo import DemoConfig


def test_the_demo_does_not_remove_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.pt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds model but no demo\.json"):
        demo(DemoConfig(output=str(tmp_path)))
    assert (tmp_path / "model" / "thesis.pt").read_text() == "mine"
