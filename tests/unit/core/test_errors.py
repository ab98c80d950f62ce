from segmodel.core.errors import first_line


def test_the_first_line_of_an_error_is_its_message_or_its_kind() -> None:
    assert first_line(ValueError("no such file\nTraceback")) == "no such file"
    assert first_line(ValueError()) == "ValueError"
