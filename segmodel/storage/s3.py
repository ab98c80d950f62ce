"""Configures the two S3 clients, s3fs and pyarrow's own, alike: environment, retries and errors.

Endpoint, region and credentials come from the standard AWS environment, as botocore reads it.
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
"""Attempts at an S3 request that fails for a passing reason (no answer, 5xx, broken connection).

The waits in between grow to 15 s and more: seconds in all for the first, 5 minutes for the second.
"""
TIMEOUT_S = 15.0
"""An attempt fails if no byte arrives for so long."""
_attempts = STARTUP_ATTEMPTS
_GIVE_KEYS = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def retry_for_minutes() -> None:
    """From now on, retry requests of this process for minutes.

    Call it when work begins. Before that, an S3 that does not answer is an error within seconds.
    """
    global _attempts
    _attempts = RUNNING_ATTEMPTS


def client_options() -> dict[str, Any]:
    """Options of s3fs. It retries by itself, so botocore below it does not."""
    return {
        "config_kwargs": {
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        }
    }


def set_retries(fs: fsspec.AbstractFileSystem) -> None:
    """Give s3fs the number of attempts of this process."""
    import s3fs.core  # takes a second, which local files need not pay

    s3fs.core.set_custom_error_handler(_is_transient)
    fs.retries = _attempts


def _is_transient(error: BaseException) -> bool:
    """Whether to retry after an error after which s3fs would not."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500 or status == 429)
    return isinstance(error, exceptions.ConnectionError)


def with_os_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turn errors of S3 clients into OSError with the URI, which is the first argument."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            if type(error).__module__.startswith("botocore."):
                hint = _GIVE_KEYS if type(error).__name__ == "NoCredentialsError" else ""
                raise ConnectionError(f"{arguments[0]}: {error}{hint}") from error
            if str(arguments[0]) in str(error):  # it has been through here already
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
    """Pyarrow's own client for one bucket."""
    from botocore.exceptions import BotoCoreError
    from botocore.httpsession import ProxyConfiguration
    from botocore.utils import get_environ_proxies

    session, client = _aws()
    credentials = session.get_credentials()  # botocore renews those that expire
    keys = credentials.get_frozen_credentials() if credentials else None
    url, region = urlsplit(client.meta.endpoint_url), client.meta.region_name
    endpoint: str | None = client.meta.endpoint_url
    if url.hostname in (
        "s3.amazonaws.com",
        f"s3.{region}.amazonaws.com",
        f"s3.{region}.amazonaws.com.cn",
    ):
        # Amazon's own: pyarrow knows it, but follows no redirection to the bucket's region.
        endpoint = None
        # No credentials, or no answer: reading then raises the error.
        with contextlib.suppress(BotoCoreError, LookupError):
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
            "pyarrow's S3 client does not take this environment: HTTPS_PROXY and HTTP_PROXY must "
            "be http://host:port or https://host:port (a # in a password is written %23), "
            "AWS_ENDPOINT_URL http://… or https://…"
        ) from None


@functools.lru_cache(maxsize=8)
def _region_of(bucket: str) -> str:
    """The region of a bucket; S3 tells it even without permission to read the bucket.

    Raises:
        LookupError: the answer does not name it.
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
    """The session of botocore, and an S3 client that knows endpoint and region."""
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
