from dataclasses import replace

import numpy as np
import pytest

from segmodel.sources.dicom_image import ImageHeader, StoredPixels
from segmodel.sources.dicom_stacks import Stack, stacks_of
from tests.support.dicoms import AXIAL, uid


def image(z: float, **changes: object) -> ImageHeader:
    made = ImageHeader(
        path=f"{z}.dcm",
        frame=None,
        sop_instance_uid=uid(f"{z} {changes}"),
        patient_id="P1",
        study_uid="1.2",
        study_date=None,
        series_uid="1.2.3",
        series_number=1,
        description="",
        protocol="",
        modality="MR",
        image_type=("ORIGINAL",),
        sequence="",
        contrast=False,
        repetition_time=None,
        echo_time=None,
        inversion_time=None,
        frame_of_reference=None,
        orientation=AXIAL,
        position=(0.0, 0.0, z),
        rows=4,
        columns=6,
        spacing=(0.5, 0.25),
        echo_number=None,
        b_value=None,
        temporal_position=None,
        acquisition=None,
        trigger_time=None,
        transfer_syntax="",
        colour=False,
        rescale=(1.0, 0.0),
        pixels=StoredPixels(None, 0, 0, "", {}, None),
    )
    return replace(made, **changes)


def only(images: list[ImageHeader]) -> Stack:
    (stack,), problems = stacks_of(images)
    assert problems == []
    return stack


def test_order_and_step_come_from_positions_whatever_the_order_of_files() -> None:
    stack = only([image(z) for z in (11.0, 0.0, 5.5, 16.5)])
    assert [one.position for one in stack.images] == [(0, 0, z) for z in (0.0, 5.5, 11.0, 16.5)]
    assert stack.slice_index == (0, 1, 2, 3)
    assert stack.grid.spacing_mm == pytest.approx((5.5, 0.5, 0.25))
    assert stack.no_volume_reason is None


def test_a_gap_is_a_missing_slice() -> None:
    stack = only([image(z) for z in (0.0, 5.0, 15.0, 20.0)])
    assert stack.slice_index == (0, 1, 3, 4)
    assert stack.grid.shape == (5, 4, 6)
    assert stack.grid.spacing_mm[0] == pytest.approx(5)


def test_a_voxel_lies_where_dicom_says() -> None:
    oblique = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # sagittal: rows to the back, columns to the feet
    stack = only([image(0, orientation=oblique, position=(x, 10.0, 20.0)) for x in (4.0, 1.0)])
    # Slice 1, row 2, column 3: 3 columns of 0.25 mm to the back, 2 rows of 0.5 mm down.
    found = stack.grid.affine @ [1, 2, 3, 1]
    first = stack.images[1].position
    assert first is not None
    assert found[:3] == pytest.approx([first[0], 10 + 0.75, 20 - 1.0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("echo_time", (20.0, 80.0)),
        ("b_value", (0.0, 1000.0)),
        ("temporal_position", (1, 2)),
        ("acquisition", (1, 2)),
        ("image_type", (("ORIGINAL", "M"), ("ORIGINAL", "P"))),
    ],
)
def test_images_of_one_place_are_told_apart(name: str, values: tuple[object, object]) -> None:
    images = [image(z, **{name: value}) for z in (0.0, 5.0, 10.0) for value in values]
    stacks, problems = stacks_of(images)
    assert problems == []
    assert [len(stack.images) for stack in stacks] == [3, 3]
    assert {getattr(stack.first, name) for stack in stacks} == set(values)
    assert all(stack.part for stack in stacks)


def test_an_acquisition_number_that_differs_does_not_split_a_stack() -> None:
    stack = only([image(5.0 * n, acquisition=n % 2) for n in range(4)])
    assert len(stack.images) == 4


def test_two_images_in_one_place_that_nothing_tells_apart_are_no_stack() -> None:
    stacks, (problem,) = stacks_of(
        [image(0.0), image(0.0, path="copy.dcm", rows=4, series_number=2)]
    )
    assert stacks == []
    assert "share positions" in problem


def test_the_same_image_twice_counts_once() -> None:
    images = [image(0.0), image(5.0)]
    stack = only([*images, replace(images[0], path="copy.dcm")])
    assert len(stack.images) == 2


def test_planes_of_a_localizer_are_stacks_of_their_own() -> None:
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    stacks, _ = stacks_of([image(0.0), image(5.0), image(0.0, orientation=sagittal)])
    assert sorted(len(stack.images) for stack in stacks) == [1, 2]


def test_uneven_steps_have_no_distance_and_say_so() -> None:
    stack = only([image(z) for z in (0.0, 5.0, 11.3, 16.0)])
    assert stack.no_volume_reason == "uneven distances between slices: 4.70 to 6.30 mm"
    assert stack.slice_index == (0, 1, 2, 3)


def test_a_gantry_tilt_has_no_distance_and_says_so() -> None:
    step = np.tan(np.radians(15)) * 5
    stack = only([image(5.0 * n, position=(0.0, step * n, 5.0 * n)) for n in range(3)])
    assert stack.no_volume_reason == "the stack is sheared by 15.0 degrees (gantry tilt)"


def test_one_slice_has_no_distance() -> None:
    assert only([image(0.0)]).no_volume_reason == "one slice only: no distance to another"


@pytest.mark.parametrize("name", ["position", "orientation", "spacing"])
def test_an_image_that_lies_nowhere_is_left_out_with_the_reason(name: str) -> None:
    stacks, (problem,) = stacks_of([image(0.0), image(5.0), image(10.0, **{name: None})])
    assert len(stacks[0].images) == 2
    assert problem.startswith("1 images without position")
