"""Ingest and segmentation with every folder on S3: the real client and a real HTTP server.

A training that writes to S3 is in test_train_job.
"""

import pytest

from jobs import ingest, segment
from segmodel.archive.reader import Archive
from segmodel.storage import store
from tests.support import standin


@pytest.mark.usefixtures("local_ray")
def test_archive_checkpoint_and_runs_may_all_lie_on_s3(
    s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, model, run = (
        store.join(s3_bucket, name) for name in ("archive", "model", "runs/tonight")
    )
    phantom = [
        "--phantom-patients",
        "3",
        "--phantom-slices",
        "30",
        "--phantom-size",
        "32",
        "--tracking",
        "none",
    ]
    assert ingest.main(["--format", "phantom", "--archive", archive, *phantom]) == 0
    standin.save(model, 32)

    arguments = [
        "--archive",
        archive,
        "--checkpoint",
        model,
        "--output",
        run,
        "--shard-slices",
        "64",
    ]
    assert segment.main(arguments) == 0
    assert "90 of 90 slices segmented, 0 in quarantine, 3 patients" in capsys.readouterr().out
    with store.open_parquet(store.join(archive, Archive(archive).files[0])) as file:
        slices = file.read(columns=["patient_id", "mask"]).to_pylist()
    assert b"data:image/webp" in store.read_bytes(store.join(run, "report.html"))
    with store.open_parquet(store.join(run, "volumes.parquet")) as file:
        volumes = file.read().to_pylist()
    for row in volumes:
        assert row["tumor_voxels"] == sum(
            sum(each["mask"]) for each in slices if each["patient_id"] == row["patient_id"]
        )
        assert row["tumor_volume_ml"] > 0
    assert store.exists(
        store.join(run, ".neptune/offline")
    )  # tracked beside the results, also there
    part = Archive(archive).files[0].removesuffix(".parquet")
    assert store.list_files(store.join(run, "masks")) == [
        f"{part}-rows-00000-00001.parquet",
        f"{part}-rows-00001-00002.parquet",
    ]

    store.remove(store.join(run, f"masks/{part}-rows-00001-00002.parquet"))
    assert segment.main(arguments) == 0
    assert "1 of 2 shards done now" in capsys.readouterr().out
    assert segment.main(arguments) == 0
    assert "nothing to do: all 2 shards are there already" in capsys.readouterr().out
