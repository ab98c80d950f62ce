import subprocess
import sys

from segmodel.analysis.series_shapes import CHUNK_FILES, Chunk, Series, plan


def series(name: str, *files: str) -> Series:
    return Series(name, name, list(files), postprocess=False, voxel_mm3=None)


def test_series_of_the_same_files_are_measured_together() -> None:
    names = [f"{number:02d}.parquet" for number in range(20)]
    wanted = [series(f"{name}-{n}", name) for name in names for n in range(3)]
    wanted.append(series("across", names[3], names[4]))
    chunks = plan(reversed(wanted))
    assert sorted(one.patient_id for chunk in chunks for one in chunk.series) == sorted(
        one.patient_id for one in wanted
    )
    assert [len(chunk.files) for chunk in chunks] == [
        CHUNK_FILES,
        CHUNK_FILES,
        20 - 2 * CHUNK_FILES,
    ]
    assert [chunk.name for chunk in chunks] == ["series-00000", "series-00001", "series-00002"]


def test_a_series_that_lies_in_more_files_than_a_chunk_takes_is_a_chunk_alone() -> None:
    many = [f"{number:02d}.parquet" for number in range(CHUNK_FILES + 1)]
    chunks = plan([series("wide", *many), series("next", many[0])])
    assert [[one.patient_id for one in chunk.series] for chunk in chunks] == [["next"], ["wide"]]


def test_workers_that_measure_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, segmodel.analysis.series_shapes; "
        "print(sorted({'torch', 'ray', 'fastai'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_a_chunk_survives_its_way_as_text() -> None:
    chunk = Chunk(
        "series-00000", [Series("A", "B", ["x.parquet"], postprocess=True, voxel_mm3=0.5)]
    )
    assert Chunk.from_json(chunk.to_json()) == chunk
