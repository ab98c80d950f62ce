from dataclasses import replace
from pathlib import Path

import pytest

from segmodel.core.errors import ConfigError
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_stacks import Stack, stacks_of
from segmodel.sources.series_rules import choose, load_rules
from tests.unit.sources.test_dicom_stacks import image

RULES = load_rules(None)


def stack(number: int, count: int = 3, step: float = 5.0, **changes: object) -> Stack:
    images = [
        image(step * n, series_uid=f"1.{number}", series_number=number, **changes)
        for n in range(count)
    ]
    (found,), _ = stacks_of(images)
    return found


def verdict(**changes: object) -> str | None:
    """The sequence of a series, None if it is left out or no rule fits."""
    one = image(0.0, **changes)
    if RULES.why_left_out(one):
        return None
    return choose([stack(1, **changes)], RULES)[0].sequence


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("AX T2 FLAIR", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("T2W_FLAIR SENSE", "FLAIR"),
        ("Ax FLAIR +C", "FLAIR"),
        ("3D SAG CUBE T2 FLAIR", "FLAIR"),
        ("AX T1", "pre-contrast"),
        ("t1_se_tra", "pre-contrast"),
        ("t1_mprage_sag_p2_iso", "pre-contrast"),
        ("AX T1 PRE GAD", "pre-contrast"),
        ("T1 without contrast", "pre-contrast"),
        ("AX T1 POST GD", "post-contrast"),
        ("AX T1 +C", "post-contrast"),
        ("t1_mprage_tra_km", "post-contrast"),
        ("SAG 3D BRAVO POST", "post-contrast"),
        ("POST AX T1", "post-contrast"),
        ("AX T1 FSE GAD", "post-contrast"),
        ("AX T1 FLAIR", "pre-contrast"),
        ("t1_tirm_tra_dark-fluid", "pre-contrast"),
        ("Ax T1 FLAIR +C", "post-contrast"),
        ("T1 non-contrast", "pre-contrast"),
        ("T1 unenhanced", "pre-contrast"),
        ("T1w nativ", "pre-contrast"),
        ("T1Gd", "post-contrast"),
        ("T1ce", "post-contrast"),
        ("t1c", "post-contrast"),
        ("T1 C+", "post-contrast"),
        ("C+ AX T1", "post-contrast"),
        ("T1W_3D_TFE_Gadovist", "post-contrast"),
        ("AX T1 W/ CONTRAST", "post-contrast"),
        ("AX T2 FSE", "T2"),
        ("t2_tse_tra_448", "T2"),
        ("3-plane Localizer", None),
        ("Survey_SHC", None),
        ("ep2d_diff_3scan_trace_p2", None),
        ("DWI b1000", None),
        ("SWI_Images", None),
        ("TOF_3D_multi-slab", None),
        ("DSC Perfusion", None),
        ("AX T1 SUBTRACTION", None),
        ("T1_MAP", None),
    ],
)
def test_default_rules_know_what_scanners_call_their_series(
    description: str, sequence: str | None
) -> None:
    assert verdict(description=description) == sequence


@pytest.mark.parametrize(
    ("description", "sequence"),
    [("AX T1", "pre-contrast"), ("AX T1 POST", "post-contrast"), ("AX T2 FLAIR", "FLAIR")],
)
def test_the_name_of_the_examination_does_not_overrule_the_series(
    description: str, sequence: str
) -> None:
    protocol = "BRAIN T1 T2 FLAIR W/WO CONTRAST"
    assert verdict(description=description, protocol=protocol) == sequence


def test_the_protocol_decides_where_the_series_is_called_nothing_that_is_known() -> None:
    assert verdict(description="series 5", protocol="t2_tirm_tra_dark-fluid") == "FLAIR"
    assert verdict(description="series 1", protocol="localizer") is None


def test_parameters_decide_where_the_description_says_nothing() -> None:
    flair = {"inversion_time": 2500.0, "echo_time": 120.0, "repetition_time": 9000.0}
    assert verdict(**flair) == "FLAIR"
    spin_echo = {"repetition_time": 500.0, "echo_time": 12.0, "sequence": "SE SK"}
    assert verdict(**spin_echo) == "pre-contrast"
    assert verdict(**spin_echo, contrast=True) == "post-contrast"
    assert verdict(repetition_time=4000.0, echo_time=100.0, sequence="SE") == "T2"
    assert verdict() is None


def test_an_agent_in_the_header_makes_a_t1_series_post_contrast() -> None:
    assert verdict(description="AX T1 SE", contrast=True) == "post-contrast"


@pytest.mark.parametrize(
    "changes",
    [{"modality": "CT"}, {"colour": True}, {"image_type": ("DERIVED", "SECONDARY", "ADC")}],
)
def test_what_is_no_image_for_the_model_is_left_out_with_the_reason(changes: dict) -> None:
    assert RULES.why_left_out(image(0.0, description="FLAIR", **changes))


def test_a_mosaic_is_left_out_whatever_the_rules_say(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("sequences:\n  FLAIR:\n    - {description: ''}\n")
    rules = load_rules(str(tmp_path / "rules.yaml"))
    mosaic = image(0.0, image_type=("ORIGINAL", "PRIMARY", "M", "MOSAIC"))
    assert rules.why_left_out(image(0.0)) is None
    assert rules.why_left_out(mosaic) == "Siemens mosaic (many slices in one image)"


SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
FLAIR = {"description": "FLAIR"}


def axial(number: int, **changes: object) -> Stack:
    return stack(number, **FLAIR, **changes)


def sagittal(number: int) -> Stack:
    images = [
        image(0.0, position=(5.0 * n, 0.0, 0.0), orientation=SAGITTAL, series_uid="1.9", **FLAIR)
        for n in range(9)
    ]
    (found,), _ = stacks_of([replace(one, series_number=number) for one in images])
    return found


def uneven(number: int) -> Stack:
    places = (0.0, 5.0, 11.3, 16.0, 20.0)
    images = [image(z, series_uid="1.8", series_number=number, **FLAIR) for z in places]
    (found,), _ = stacks_of(images)
    return found


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (axial(9), sagittal(1)),
        (axial(9), uneven(1)),
        (axial(9), axial(1, image_type=("DERIVED", "SECONDARY"), count=30)),
        (axial(9, count=4), axial(1, count=3)),
        (axial(9, spacing=(0.4, 0.4)), axial(1, spacing=(0.5, 0.5))),
        (axial(1), axial(9)),
    ],
    ids=["axial", "even steps", "original", "more slices", "finer", "earlier"],
)
def test_of_several_series_the_better_is_taken_and_the_other_named(
    better: Stack, worse: Stack
) -> None:
    for stacks in ([better, worse], [worse, better]):
        verdicts = {id(found.stack): found for found in choose(stacks, RULES)}
        assert verdicts[id(better)].chosen
        assert not verdicts[id(worse)].chosen
        assert "is preferred" in verdicts[id(worse)].because


def headers(description: str) -> ImageHeader:
    return image(0.0, description=description)


def test_rules_of_one_s_own_replace_the_default(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("sequences:\n  FLAIR:\n    - {description: 'ward 7'}\n")
    rules = load_rules(str(file))
    assert choose([stack(1, description="Ward 7 scan")], rules)[0].sequence == "FLAIR"
    assert choose([stack(1, description="AX FLAIR")], rules)[0].sequence is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequences: [", "not YAML"),
        ("- a", "expected the keys"),
        ("sequences: {}\nmore: 1", "unknown key 'more'"),
        ("sequences: {FLAIR: [{descripton: x}]}", "unknown condition 'descripton'"),
        ("sequences: {FLAIR: [{because: x}]}", "would fit every series"),
        ("sequences: {FLAIR: [{description: '('}]}", "FLAIR|\\("),
        ("sequences: {FLAIR: [{echo_time_ms: 5}]}", "echo_time_ms"),
        ("sequences: {}\nsequences: {}", "the key 'sequences' comes twice"),
        ("sequences: {FLAIR: [flair]}", "a rule is a list of conditions"),
    ],
)
def test_a_file_of_rules_that_cannot_be_used_says_why(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_rules(str(tmp_path / "rules.yaml"))


def test_a_file_of_rules_in_another_encoding_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("sequences: {FLAIR: [{description: schräg}]}", encoding="latin-1")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load_rules(str(file))
