import re

from segmodel.export.file_names import LONGEST, distinct, file_stems


def stem(patient: str, series: str | None = None) -> str:
    key = (patient, series or patient)
    return file_stems([key])[key]


def test_plain_ids_are_the_file_name() -> None:
    assert stem("TCGA_CS_4941_19960909") == "TCGA_CS_4941_19960909"
    assert stem("P1", "1.2.840.113619") == "P1_1.2.840.113619"


def test_other_ids_keep_what_is_safe_and_get_a_hash() -> None:
    for name in ("../../etc/passwd", "..", "a/b", "a\\b", "", "Müller", "\0", "-rf", "CON:"):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{10}", stem(name)), name
    assert stem("a/b").startswith("a-b-")
    assert stem("a/b") != stem("a b")


def test_long_ids_are_cut() -> None:
    one, two = "x" * 300, "x" * 299 + "y"
    names = file_stems([(one, one), (two, two)])
    assert len(set(names.values())) == 2
    assert all(len(name) == LONGEST + 11 for name in names.values())


def test_names_that_differ_in_case_or_in_where_the_id_ends_are_told_apart() -> None:
    series = [("p1", "p1"), ("P1", "P1"), ("a", "b_c"), ("a_b", "c"), ("P2", "P2")]
    names = file_stems(series)
    assert len({name.lower() for name in names.values()}) == 5
    assert names["P2", "P2"] == "P2"


def test_an_id_that_looks_like_the_name_of_another_gets_a_hash_of_its_own() -> None:
    other = stem("a/b")
    names = file_stems([("a/b", "a/b"), (other, other)])
    assert len(set(names.values())) == 2


def test_channels_of_one_safe_name_are_numbered() -> None:
    assert distinct(["FLAIR", "T1/a", "T1 a"]) == ["FLAIR", "T1-a-2", "T1-a-3"]
