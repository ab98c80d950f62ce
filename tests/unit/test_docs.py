"""What README.md and docs/ say can be done as it stands there."""

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest

from segmodel import demo
from segmodel.core import schema
from segmodel.core.dice import EpochResult, Step
from segmodel.evaluation import comparison, results
from segmodel.evaluation.cases import Case, LesionRow
from segmodel.evaluation.pairing import Unpaired
from segmodel.export import driver as export
from segmodel.export.records import TABLE_COLUMNS, Reject
from segmodel.report import kept_samples
from segmodel.runs import run_folder
from segmodel.storage import csv_files
from segmodel.training import output as training

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


def explained(page: str) -> set[str]:
    """The words in backticks of a page: names of files and columns."""
    quoted = re.findall(r"`([^`]+)`", (ROOT / "docs" / page).read_text().replace("\n", " "))
    return {word for text in quoted for word in re.split(r"[\s,]+", text)}


TABLES = {
    **{name: table.names for name, table in vars(schema).items() if isinstance(table, pa.Schema)},
    "channels": [field.name for field in schema.ARCHIVE_SERIES.field("channels").type.value_type],
    "patients.csv": [field.name for field in fields(Case)],
    "lesions.csv": [field.name for field in fields(LesionRow)],
    "not_compared.csv": [field.name for field in fields(Unpaired)],
    "exported.csv": TABLE_COLUMNS.names,
    "rejects.csv": [field.name for field in fields(Reject)],
    "history.csv": [field.name for field in fields(EpochResult)],
    "steps.csv": [field.name for field in fields(Step)],
    "samples.parquet": kept_samples.SCHEMA.names,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_explained(table: str) -> None:
    assert set(TABLES[table]) - explained("formats.md") == set()


LAYOUTS = {
    "train": training.TRAINING,
    "find_lr": training.RANGE_TEST,
    "compare": comparison.LAYOUT,
    "segment": run_folder.LAYOUT,
    "evaluate": results.LAYOUT,
    "export": export.LAYOUT,
    "demo": demo.LAYOUT,
}


@pytest.mark.parametrize("job", LAYOUTS)
def test_every_file_of_an_output_folder_is_explained(job: str) -> None:
    # A file in a folder may be explained with the folder or by itself.
    words = {word.split("/<")[0].rstrip("/") for word in explained("formats.md")}
    names = {LAYOUTS[job].run_file, *LAYOUTS[job].results}
    assert {name for name in names if not {name, Path(name).name} & words} == set()


def test_every_benchmark_is_listed_with_its_command() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    folder = ROOT / "tests" / "benchmarks"
    # fastai_loop is a process that the benchmark of training starts.
    there = {p.stem for p in folder.glob("*.py") if "__main__" in p.read_text()} - {"fastai_loop"}
    assert there == set(re.findall(r"python -m tests\.benchmarks\.(\w+)", page))


def test_every_job_is_on_a_page() -> None:
    named = {module for _, module, _ in commands()}
    there = {f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("*.py")} - {"jobs.__init__"}
    assert there - named == {"jobs.demo"}  # make demo
