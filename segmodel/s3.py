"""S3 for two clients, s3fs and pyarrow's own: the same environment, the same patience, and errors as of other file systems.

Endpoint, region and credentials come from the standard AWS environment, as botocore understands it.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
HASTY_ATTEMPTS, PATIENT_ATTEMPTS = 6, 28
"""At an S3 request that fails for a reason that may pass (no answer, a 5xx, a broken connection). The waits in between grow to
15 seconds and more: seconds in all, or some 5 minutes."""
TIMEOUT_S = 15.0
"""Without an answer, or without a byte more of one, an attempt has failed."""
_attempts = HASTY_ATTEMPTS


def be_patient() -> None:
    """Outlast minutes of trouble at S3 from now on: of a process that has begun to work.

    Before that a store that does not answer, or is not there, is an error within seconds.
    """
    global _attempts
    _attempts = PATIENT_ATTEMPTS


def options() -> dict[str, Any]:
    """Of s3fs: it tries again itself, and botocore below it need not."""
    return {"config_kwargs": {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retries": {"total_max_attempts": 1}}}


def prepare(fs: fsspec.AbstractFileSystem) -> None:
    """Give s3fs the patience of this process."""
    import s3fs.core  # costs a second that local files need not pay

    s3fs.core.set_custom_error_handler(_may_pass)
    fs.retries = _attempts


def _may_pass(error: BaseException) -> bool:
    """Of errors that s3fs would not try again after: whether another attempt may do better."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500 or status == 429)
    return isinstance(error, exceptions.ConnectionError)


def with_os_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make what goes wrong on the way to S3 the OSError that it is elsewhere, with the URI, which is the first argument."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            if type(error).__module__.startswith("botocore."):
                raise ConnectionError(f"{arguments[0]}: {error}") from error
            if type(error) is OSError and error.filename is None:
                raise OSError(error.errno, f"{arguments[0]}: {error.strerror or error}") from error
            raise

    return call


def arrow_filesystem() -> pyarrow.fs.S3FileSystem:
    """The client of pyarrow itself."""
    session, endpoint, region = _aws()
    credentials = session.get_credentials()  # renewed by botocore where they expire
    keys = credentials.get_frozen_credentials() if credentials else None
    secrets = (keys.access_key, keys.secret_key, keys.token) if keys else (None, None, None)
    return _arrow_filesystem(secrets, endpoint, region, _attempts)


@functools.lru_cache(maxsize=2)
def _arrow_filesystem(
    secrets: tuple[str | None, str | None, str | None], endpoint: str | None, region: str, attempts: int
) -> pyarrow.fs.S3FileSystem:
    access_key, secret_key, session_token = secrets
    return pyarrow.fs.S3FileSystem(
        access_key=access_key, secret_key=secret_key, session_token=session_token, anonymous=access_key is None,
        endpoint_override=endpoint, region=region, connect_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _aws() -> tuple[Any, str | None, str]:
    """The session of botocore, an endpoint that is not Amazon's own, and the region."""
    import botocore.session

    session = botocore.session.get_session()
    meta = session.create_client("s3").meta
    amazon = urlsplit(meta.endpoint_url).hostname or ""
    own = amazon.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return session, None if own else meta.endpoint_url, meta.region_name
