"""S3 for two clients, s3fs and pyarrow's own: the same environment, the same patience, and errors as of other file systems.

Endpoint, region and credentials come from the standard AWS environment, as botocore understands it.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs

from segmodel.core.errors import ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
STARTUP_ATTEMPTS, RUNNING_ATTEMPTS = 6, 28
"""At an S3 request that fails for a reason that may pass (no answer, a 5xx, a broken connection). The waits in between grow to
15 seconds and more: seconds in all, or some 5 minutes."""
TIMEOUT_S = 15.0
"""Without an answer, or without a byte more of one, an attempt has failed."""
_attempts = STARTUP_ATTEMPTS


def retry_for_minutes() -> None:
    """Outlast minutes of trouble at S3 from now on: of a process that has begun to work.

    Before that a store that does not answer, or is not there, is an error within seconds.
    """
    global _attempts
    _attempts = RUNNING_ATTEMPTS


def client_options() -> dict[str, Any]:
    """Of s3fs: it tries again itself, and botocore below it need not."""
    return {
        "config_kwargs": {
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        }
    }


def set_retries(fs: fsspec.AbstractFileSystem) -> None:
    """Give s3fs the patience of this process."""
    import s3fs.core  # costs a second that local files need not pay

    s3fs.core.set_custom_error_handler(_is_transient)
    fs.retries = _attempts


def _is_transient(error: BaseException) -> bool:
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
            if str(arguments[0]) in str(error):  # it may have come through here already
                raise
            if (
                isinstance(error, OSError)
                and type(error).__module__ == "builtins"
                and error.filename is None
            ):
                text = f"{arguments[0]}: {error.strerror or error}"
                raise (
                    type(error)(text) if error.errno is None else type(error)(error.errno, text)
                ) from error
            raise

    return call


def arrow_filesystem(bucket: str) -> pyarrow.fs.S3FileSystem:
    """The client of pyarrow itself, for one bucket."""
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import ProxyConfiguration
    from botocore.utils import get_environ_proxies

    session, client = _aws()
    credentials = session.get_credentials()  # renewed by botocore where they expire
    keys = credentials.get_frozen_credentials() if credentials else None
    url, region = urlsplit(client.meta.endpoint_url), client.meta.region_name
    endpoint: str | None = client.meta.endpoint_url
    if url.hostname in (
        "s3.amazonaws.com",
        f"s3.{region}.amazonaws.com",
        f"s3.{region}.amazonaws.com.cn",
    ):
        endpoint = None  # Amazon's own: pyarrow knows it, but takes no redirection to the region of the bucket
        with contextlib.suppress(
            BotoCoreError, LookupError
        ):  # no credentials, or no answer: the reading itself will tell
            region = _region_of(bucket)
    return _arrow_filesystem(
        keys and (keys.access_key, keys.secret_key, keys.token),
        endpoint,
        "us-east-1" if region == "aws-global" else region,  # where no region is configured
        session.get_config_variable("ca_bundle"),
        ProxyConfiguration(get_environ_proxies(client.meta.endpoint_url)).proxy_url_for(
            client.meta.endpoint_url
        ),
        _attempts,
    )


@functools.lru_cache(maxsize=8)
def _arrow_filesystem(
    keys: tuple[str, str, str | None] | None,
    endpoint: str | None,
    region: str | None,
    ca_bundle: str | None,
    proxy: str | None,
    attempts: int,
) -> pyarrow.fs.S3FileSystem:
    access_key, secret_key, session_token = keys or (None, None, None)
    try:
        return pyarrow.fs.S3FileSystem(
            access_key=access_key,
            secret_key=secret_key,
            session_token=session_token,
            anonymous=keys is None,
            endpoint_override=endpoint,
            region=region,
            tls_ca_file_path=ca_bundle,
            proxy_options=proxy,
            connect_timeout=TIMEOUT_S,
            request_timeout=TIMEOUT_S,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        )
    except pa.ArrowException:  # its message may hold a password
        raise ConfigError(
            "pyarrow's client of S3 does not take this environment: HTTPS_PROXY and HTTP_PROXY must be http://host:port or "
            "https://host:port (a # in a password is written %23), AWS_ENDPOINT_URL http://… or https://…"
        ) from None


@functools.lru_cache(maxsize=8)
def _region_of(bucket: str) -> str:
    """Where a bucket lies, which S3 says even to those who may not look into it.

    Raises:
        LookupError: it does not say, this time.
    """
    from botocore.exceptions import ClientError

    _, client = _aws()
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    return str(answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"])


@functools.lru_cache(maxsize=1)
def _aws() -> tuple[Any, Any]:
    """The session of botocore, and a client of S3 of which the endpoint and the region are asked."""
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    config = Config(
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        retries={"total_max_attempts": 2},
        s3={"us_east_1_regional_endpoint": "regional"},  # us-east-1 has that name only then
    )
    return session, session.create_client("s3", config=config)
