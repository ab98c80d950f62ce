import errno

import pytest

from segmodel.sources.base import RejectError
from segmodel.sources.file_errors import reject_lasting_errors


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("/scans/a.dcm", PermissionError(errno.EACCES, "Permission denied")),
        ("/scans/a.dcm", OSError(errno.EIO, "Input/output error")),
        ("s3://mri/a.dcm", FileNotFoundError(errno.ENOENT, "No such file or directory")),
    ],
)
def test_what_a_file_will_answer_again_is_a_reject_of_that_file(uri: str, error: OSError) -> None:
    with (
        pytest.raises(RejectError, match=f"^cannot be read: {error.strerror}$"),
        reject_lasting_errors(uri),
    ):
        raise error


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("/scans/a.dcm", OSError(errno.ESTALE, "Stale file handle")),
        ("s3://mri/a.dcm", PermissionError(errno.EACCES, "The provided token has expired")),
    ],
)
def test_what_may_pass_or_concerns_all_files_ends_the_ingest(uri: str, error: OSError) -> None:
    with pytest.raises(type(error), match=error.strerror), reject_lasting_errors(uri):
        raise error
