"""What README.md and docs/ say can be done as it stands there."""

import importlib
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pytest

from segmodel.storage import csv_files

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m (jobs\.\w+)((?: [^\n`\\#]+)?)")


def commands() -> list[tuple[str, str, str]]:
    """Page, module and arguments of every job that a page starts."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for module, arguments in COMMAND.findall(text):
            found.append((page.name, module, arguments.strip()))
    return found


@pytest.mark.parametrize(("page", "module", "arguments"), commands())
def test_every_command_is_one_that_its_job_takes(
    page: str, module: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = importlib.import_module(module)
    accepted = []

    class Accepted(Exception):  # noqa: N818 - no error: the job has read its flags
        pass

    parse = job.cli.parse

    def only_parse(*positional: object, **named: object) -> object:
        accepted.append(parse(*positional, **named))
        raise Accepted

    monkeypatch.setattr(job.cli, "parse", only_parse)
    with pytest.raises(Accepted):
        job.main(shlex.split(arguments))
    assert accepted


def test_there_are_commands_for_the_whole_chain() -> None:
    modules = {module for page, module, _ in commands() if page == "README.md"}
    assert {"jobs.ingest", "jobs.train", "jobs.segment", "jobs.evaluate"} <= modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/formats.md"])
def test_pandas_reads_volumes_as_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = pytest.importorskip("pandas")
    table = pa.table({"patient_id": ["NA", "007", "P1"], "tumor_volume_ml": [1.5, 2.0, None]})
    csv_files.publish_csv_table(str(tmp_path / "volumes.csv"), table)
    monkeypatch.chdir(tmp_path)
    (call,) = re.findall(r"`(pd\.read_csv\(.*?\))`", (ROOT / page).read_text())
    read = eval(call, {"pd": pd})
    assert read["patient_id"].tolist() == ["NA", "007", "P1"]
    assert read["tumor_volume_ml"].sum() == 3.5


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


@pytest.mark.parametrize(
    "table", ["VOLUMES", "CHANGES", "MASKS", "ARCHIVE", "ARCHIVE_SERIES", "SERIES_CHOICES"]
)
def test_every_column_is_explained(table: str) -> None:
    from segmodel.core import schema

    text = (ROOT / "docs" / "formats.md").read_text()
    for name in getattr(schema, table).names:
        assert name in text, name


def test_every_job_is_on_a_page() -> None:
    named = {module for _, module, _ in commands()}
    there = {f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("*.py")} - {"jobs.__init__"}
    assert there - named == {"jobs.demo"}  # make demo
