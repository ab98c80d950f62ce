"""jobs.evaluate from end to end, on a real local Ray, against truth that is known to the voxel."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, segment
from segmodel.core.errors import ArchiveError, ConfigError, FingerprintError
from segmodel.core.mask_png import encode_mask
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import standin

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def run(phantom_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation without an error, by a model that has learned from patient 2."""
    folder = tmp_path_factory.mktemp("evaluated")
    model = standin.save(str(folder / "model"), SIZE, training_patients=("PHANTOM_0002",))
    where = ["--archive", phantom_archive, "--checkpoint", model, "--output", str(folder / "run")]
    assert segment.main([*where, "--tracking", "none"]) == 0
    return folder / "run"


def without_patient(run: Path, copy: Path, patient: str) -> Path:
    """The same run, in which the model found nothing in one patient."""
    shutil.copytree(run, copy)
    for path in (copy / "masks").glob("*.parquet"):
        table = pq.read_table(path)
        nothing = encode_mask(np.zeros((SIZE, SIZE), bool))
        masks = [
            nothing if row["patient_id"] == patient else row["mask"] for row in table.to_pylist()
        ]
        column = table.schema.get_field_index("mask")
        changed = table.set_column(column, table.schema.field(column), pa.array(masks, pa.binary()))
        pq.write_table(changed, path)
    return copy


def command(archive: str, runs: str, output: Path) -> list[str]:
    where = ["--archive", archive, "--segmentation", runs, "--output", str(output)]
    return [*where, "--tracking", "none"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_two_segmentations_are_judged_and_compared(
    phantom_archive: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = without_patient(run, tmp_path / "worse", "PHANTOM_0001")
    output = tmp_path / "evaluation"
    assert evaluate.main(command(phantom_archive, f"{run},{worse}", output)) == 0
    printed = capsys.readouterr().out
    found = rows(output / "patients.csv")
    dice = {(row["segmentation"], row["patient_id"]): float(row["dice"]) for row in found}
    assert len(dice) == 2 * PATIENTS
    assert {key for key, value in dice.items() if value < 1} == {("worse", "PHANTOM_0001")}
    assert dice["worse", "PHANTOM_0001"] == 0
    missed = next(row for row in found if row["segmentation"] == "worse" and row["dice"] == "0.0")
    assert (missed["hd95"], missed["nsd"], missed["recall"]) == ("", "0.0", "0.0")
    assert missed["unit"] == "mm"
    assert float(missed["volume_error_ml"]) == -float(missed["true_ml"])
    assert {row["seen_in_training"] for row in found if row["patient_id"] == "PHANTOM_0002"} == {
        "train"
    }
    assert all(int(row["slices"]) == SLICES for row in found)
    # Of four patients that the model has not seen, three have tumor (4 is healthy); one is lost.
    summary = json.loads((output / "summaries" / "worse.json").read_text())
    unseen = next(group for group in summary["groups"] if group["name"] == "unseen")
    assert (unseen["patients"], unseen["with_tumor"]) == (4, 3)
    assert unseen["tumor_patients"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert unseen["all_patients"]["dice"]["mean"] == pytest.approx(3 / 4)
    difference = json.loads((output / "differences.json").read_text())["minus_first"]["worse"][
        "dice"
    ]
    assert difference["tumor"]["mean"] == pytest.approx(-1 / 3)
    lost = [row for row in rows(output / "lesions.csv") if row["status"] == "missed"]
    assert {row["patient_id"] for row in lost} == {"PHANTOM_0001"}
    assert (output / "evaluation.md").read_text() in printed


def test_a_segmentation_of_another_archive_is_refused(
    phantom_archive: str, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    values = json.loads((other / "run.json").read_text())
    values["fingerprint"]["archive_id"] = "0" * 32
    (other / "run.json").write_text(json.dumps(values))
    with pytest.raises(FingerprintError, match="another archive"):
        evaluate.main(command(phantom_archive, str(other), tmp_path / "evaluation"))


def test_an_archive_without_masks_has_no_truth(
    phantom_archive: str, run: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(phantom_archive, archive)
    values = json.loads((archive / "archive.json").read_text())
    (archive / "archive.json").write_text(json.dumps({**values, "annotated_slices": 0}))
    with pytest.raises(ArchiveError, match="no truth"):
        evaluate.main(command(str(archive), str(run), tmp_path / "evaluation"))


def test_a_table_that_no_evaluation_wrote_is_never_replaced(
    phantom_archive: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "patients.csv").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"patients\.csv"):
        evaluate.main([*command(phantom_archive, str(run), tmp_path), "--overwrite"])
    assert (tmp_path / "patients.csv").read_text() == "mine\n"
