import json
from collections.abc import Callable

import pytest

from segmodel.core.errors import SourceError
from segmodel.sources.nifti_layouts import Case, Listing, find_cases


def listing(paths: list[str], dataset: object = None, **more: object) -> Listing:
    content = json.dumps(dataset).encode() if dataset is not None else b""
    return find_cases(paths, lambda path: content, **more)


def only(found: Listing) -> Case:
    (case,) = found.cases
    return case


def files(case: Case) -> dict[str, str]:
    return {name: image.path for name, image in case.images.items()}


def test_brats_old_names() -> None:
    words = ("flair", "t1", "t1ce", "t2", "seg")
    found = listing([f"train/BraTS2021_00006/BraTS2021_00006_{w}.nii.gz" for w in words])
    case = only(found)
    assert (found.layout, case.patient_id, case.session) == ("brats", "BraTS2021_00006", None)
    start = "train/BraTS2021_00006/BraTS2021_00006_"
    assert files(case) == {
        "FLAIR": f"{start}flair.nii.gz",
        "pre-contrast": f"{start}t1.nii.gz",
        "post-contrast": f"{start}t1ce.nii.gz",
        "T2": f"{start}t2.nii.gz",
    }
    assert case.mask == f"{start}seg.nii.gz"


def test_brats_new_names_have_a_session_a_time_point() -> None:
    words = ("t2f", "t1n", "t1c", "t2w", "seg")
    found = listing(
        [
            f"BraTS-GLI-00005-{s}/BraTS-GLI-00005-{s}-{w}.nii.gz"
            for s in ("000", "001")
            for w in words
        ]
    )
    assert [(case.patient_id, case.session) for case in found.cases] == [
        ("BraTS-GLI-00005", "000"),
        ("BraTS-GLI-00005", "001"),
    ]
    assert set(found.cases[0].images) == {"FLAIR", "pre-contrast", "post-contrast", "T2"}


def test_decathlon_has_the_sequences_along_the_fourth_axis() -> None:
    dataset = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}
    paths = ["dataset.json", "imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"]
    case = only(listing(paths, dataset))
    components = {name: image.component for name, image in case.images.items()}
    assert components == {"FLAIR": 0, "pre-contrast": 1, "post-contrast": 2, "T2": 3}
    assert case.mask == "labelsTr/BRATS_001.nii.gz"


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_nnunet_has_a_file_a_channel(key: str) -> None:
    dataset = {key: {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}, "file_ending": ".nii.gz"}
    paths = [f"Dataset001/imagesTr/C1_000{n}.nii.gz" for n in range(4)]
    found = listing([*paths, "Dataset001/labelsTr/C1.nii.gz", "Dataset001/dataset.json"], dataset)
    case = only(found)
    assert (found.layout, case.patient_id) == ("nnunet", "C1")
    assert files(case)["FLAIR"] == "Dataset001/imagesTr/C1_0003.nii.gz"
    assert files(case)["post-contrast"] == "Dataset001/imagesTr/C1_0001.nii.gz"
    assert case.mask == "Dataset001/labelsTr/C1.nii.gz"


def test_bids_tells_contrast_by_its_entity_and_sessions_by_their_folders() -> None:
    start = "sub-01/ses-a/anat/sub-01_ses-a"
    paths = [f"{start}_FLAIR.nii.gz", f"{start}_T1w.nii.gz", f"{start}_ce-gadolinium_T1w.nii.gz"]
    mask = "derivatives/masks/sub-01/ses-a/anat/sub-01_ses-a_desc-tumor_mask.nii.gz"
    found = listing([*paths, mask, "sub-02/anat/sub-02_FLAIR.nii.gz", "participants.tsv"])
    first, second = found.cases
    assert found.layout == "bids"
    assert (first.patient_id, first.session, first.mask) == ("sub-01", "ses-a", mask)
    assert files(first)["post-contrast"].endswith("ce-gadolinium_T1w.nii.gz")
    assert files(first)["pre-contrast"] == f"{start}_T1w.nii.gz"
    assert (second.patient_id, second.session) == ("sub-02", None)


SEQUENCES = ("FLAIR=*flair*", "pre-contrast=*_t1.nii.gz")


def test_patterns_take_a_folder_for_a_patient_and_one_in_it_for_a_session() -> None:
    paths = [f"{place}/x_{w}.nii.gz" for place in ("P1/2020", "P2") for w in ("FLAIR", "t1")]
    found = listing(paths, sequences=SEQUENCES, mask="*mask*")
    assert [(case.patient_id, case.session) for case in found.cases] == [
        ("P1", "2020"),
        ("P2", None),
    ]
    assert set(found.cases[0].images) == {"FLAIR", "pre-contrast"}


def test_patterns_tell_patients_of_one_folder_apart_by_the_star() -> None:
    paths = ["all/P1_flair.nii.gz", "all/P1_t1.nii.gz", "all/P2_flair.nii.gz", "all/P1_mask.nii"]
    sequences = ("FLAIR=*_flair.nii.gz", "pre-contrast=*_t1.nii.gz")
    found = listing(paths, sequences=sequences, mask="*_mask.nii")
    assert [case.session for case in found.cases] == ["P1", "P2"]
    assert found.cases[0].mask == "all/P1_mask.nii"


def test_files_in_the_source_itself_are_one_patient_with_the_folder_s_name() -> None:
    case = only(listing(["flair.nii", "t1.nii"], sequences=("FLAIR=flair*", "T1=t1*"), root="P7"))
    assert case.patient_id == "P7"
    assert set(case.images) == {"FLAIR", "pre-contrast"}


def test_a_second_file_for_a_sequence_is_noted_and_not_used() -> None:
    case = only(listing(["P/a_flair.nii", "P/a-flair.nii"]))
    assert case.images["FLAIR"].path == "P/a-flair.nii"
    assert case.notes == ("P/a_flair.nii is a second FLAIR: not used",)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: listing(["readme.txt"]), "no .nii"),
        (lambda: listing(["a/brain.nii.gz"]), "Name the sequences"),
        (lambda: listing(["a/brain.nii.gz"], layout="bids"), "fits the layout bids"),
        (lambda: listing(["a.nii"], sequences=("FLAIR",)), "NAME=PATTERN"),
        (lambda: find_cases(["dataset.json", "a.nii"], lambda path: b"{"), "not JSON"),
    ],
)
def test_what_fits_no_layout_says_what_to_do(call: Callable[[], object], text: str) -> None:
    with pytest.raises(SourceError, match=text):
        call()
