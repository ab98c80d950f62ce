import json
from collections.abc import Callable

import pytest

from segmodel.core.errors import SourceError
from segmodel.sources.nifti_layouts import Case, Listing, find_cases


def listing(paths: list[str], dataset: object = None, **more: object) -> Listing:
    content = json.dumps(dataset).encode() if dataset is not None else b""
    if dataset is not None and not any("dataset.json" in path for path in paths):
        paths = [*paths, "dataset.json"]
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
    "name",
    [
        "brats-gli-00005-001-T2F.NII.GZ",
        "BraTS-GLI-00005-001-t2f.nii",
        "x/y/BraTS-SSA-00005-001-t2f.nii",
    ],
)
def test_brats_names_in_any_case_compressed_or_not(name: str) -> None:
    case = only(listing([name]))
    assert (case.patient_id.lower()[-5:], case.session) == ("00005", "001")
    assert set(case.images) == {"FLAIR"}


def test_decathlon_takes_the_order_of_its_own_dataset_json() -> None:
    dataset = {"modality": {"0": "T2-weighted", "1": "T1-Gd", "2": "MRA", "3": "flair"}}
    paths = ["T/dataset.json", "T/imagesTr/B.nii", "T/labelsTr/B.nii.gz", "T/imagesTs/C.nii"]
    first, second = listing(paths, dataset).cases
    components = {name: image.component for name, image in first.images.items()}
    assert components == {"T2": 0, "post-contrast": 1, "FLAIR": 3}
    assert first.mask == "T/labelsTr/B.nii.gz"
    assert (second.patient_id, second.mask) == ("C", None)


def test_a_label_without_a_case_and_a_case_without_flair_change_nothing_for_others() -> None:
    dataset = {"channel_names": {"0": "FLAIR", "1": "T1 post"}}
    paths = ["imagesTr/A_0000.nii.gz", "imagesTr/A_0001.nii.gz", "imagesTr/B_0001.nii.gz"]
    found = listing([*paths, "labelsTr/A.nii.gz", "labelsTr/Z.nii.gz", "dataset.json"], dataset)
    assert [(case.patient_id, sorted(case.images)) for case in found.cases] == [
        ("A", ["FLAIR", "post-contrast"]),
        ("B", ["post-contrast"]),
    ]
    assert found.unused == ["labelsTr/Z.nii.gz"]


def test_bids_names_with_other_entities_and_ids_are_read() -> None:
    start = "sub-TCGA-02/anat/sub-TCGA-02"
    paths = [f"{start}_acq-space_run-{n}_FLAIR.nii" for n in (2, 1)]
    preprocessed = "derivatives/prep/sub-TCGA-02/anat/sub-TCGA-02_desc-preproc_FLAIR.nii.gz"
    tissue = "derivatives/prep/sub-TCGA-02/anat/sub-TCGA-02_desc-aseg_dseg.nii.gz"
    brain = "derivatives/prep/sub-TCGA-02/anat/sub-TCGA-02_desc-brain_mask.nii.gz"
    lesion = "derivatives/manual/sub-TCGA-02/anat/sub-TCGA-02_label-lesion_mask.nii.gz"
    case = only(listing([*paths, preprocessed, tissue, brain, lesion]))
    assert files(case) == {"FLAIR": f"{start}_acq-space_run-1_FLAIR.nii"}
    assert case.mask == lesion
    assert case.notes == (f"{start}_acq-space_run-2_FLAIR.nii is a second FLAIR: not used",)


def test_patterns_may_name_a_folder_for_each_sequence() -> None:
    names = ("P1.nii.gz", "P2.nii.gz")
    paths = [f"{folder}/{name}" for folder in ("flair", "masks", "t1") for name in names]
    sequences = ("FLAIR=flair/*.nii.gz", "pre-contrast=t1/*.nii.gz")
    first, second = listing(paths, sequences=sequences, mask="masks/*").cases
    assert (first.patient_id, first.mask, set(first.images)) == (
        "P1",
        "masks/P1.nii.gz",
        {"FLAIR", "pre-contrast"},
    )
    assert second.patient_id == "P2"


def test_patterns_may_name_folders_inside_a_patient_s() -> None:
    paths = [f"P{n}/{word}/image{word}.nii" for n in (1, 2) for word in ("flair", "t1")]
    found = listing(paths, sequences=("FLAIR=*/flair/*", "T1=*/t1/*"))
    assert [(case.patient_id, case.session) for case in found.cases] == [("P1", None), ("P2", None)]
    assert set(found.cases[0].images) == {"FLAIR", "pre-contrast"}


def test_channels_that_nobody_knows_are_named() -> None:
    with pytest.raises(SourceError, match="calls its channels MRI, which are not known sequences"):
        listing(["imagesTr/A_0000.nii.gz"], {"channel_names": {"0": "MRI"}})


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


def test_what_a_mac_keeps_beside_the_files_is_no_patient() -> None:
    names = ("imagesTr/a.nii.gz", "imagesTr/._a.nii.gz", "labelsTr/a.nii.gz", ".git/a/b.nii.gz")
    found = listing([*names], {"modality": {"0": "FLAIR", "1": "T1w"}})
    assert only(found).patient_id == "a"
    assert found.unused == []


def test_channels_of_dataset_json_may_be_a_list() -> None:
    found = listing(["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], {"modality": ["T1w", "FLAIR"]})
    images = only(found).images
    assert (images["pre-contrast"].component, images["FLAIR"].component) == (0, 1)


def test_a_decathlon_case_without_a_known_channel_is_no_case() -> None:
    paths = ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"]
    with pytest.raises(SourceError, match="none of the 2 NIfTI files fits the layout decathlon"):
        listing(paths, {"modality": {"0": "CT"}}, layout="decathlon")


def test_pairs_of_hdr_and_img_are_named_as_what_is_not_read() -> None:
    with pytest.raises(SourceError, match=r"convert pairs of \.hdr and \.img to"):
        listing(["P1_flair.hdr", "P1_flair.img"])


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        ("sub-1/anat/sub-1_FLAIR_roi.nii.gz", True),
        ("derivatives/lesions/sub-1/anat/sub-1_label-tumor_mask.nii.gz", True),
        ("derivatives/lesions/sub-1/tumour.nii", True),
        ("derivatives/x/sub-1/anat/sub-1_desc-tumor_T1w.nii.gz", False),
        ("derivatives/x/sub-1/anat/sub-1_desc-brain_mask.nii.gz", False),
        ("derivatives/x/sub-1/anat/sub-1_desc-android_mask.nii.gz", False),
    ],
)
def test_bids_masks_are_told_by_a_word(name: str, is_mask: bool) -> None:
    case = only(listing(["sub-1/anat/sub-1_FLAIR.nii.gz", name]))
    assert case.mask == (name if is_mask else None)


def test_a_patient_s_id_makes_no_bids_mask_of_a_file() -> None:
    start = "sub-tumor1/ses-glioma/anat/sub-tumor1_ses-glioma"
    found = listing([f"{start}_FLAIR.nii.gz", f"derivatives/x/{start}_desc-brain_mask.nii.gz"])
    assert only(found).mask is None


def test_a_bids_mask_in_the_space_of_an_atlas_comes_last() -> None:
    start = "derivatives/x/sub-1/anat/sub-1_"
    names = ["space-MNI152_label-lesion_mask", "space-orig_label-lesion_mask"]
    found = listing(["sub-1/anat/sub-1_FLAIR.nii.gz", *[f"{start}{name}.nii.gz" for name in names]])
    assert only(found).mask == f"{start}{names[1]}.nii.gz"
