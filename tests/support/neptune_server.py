"""A server of Neptune's that keeps what it is sent: the real client with another transport."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from neptune.internal.backends.neptune_backend_mock import NeptuneBackendMock
from neptune.internal.operation import UploadFile, UploadFileSet
from neptune.metadata_containers import metadata_container

ADDRESS = "https://neptune.hospital.example"


def token(address: str = ADDRESS) -> str:
    """An API token of a server there."""
    keys = {"api_address": address, "api_url": address, "api_key": "s3cr3t"}
    return base64.b64encode(json.dumps(keys).encode()).decode()


@dataclass
class Sent:
    """All that has reached the server."""

    values: list[tuple[str, Any]] = field(default_factory=list)
    """(name, what the client says of it)"""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Of the values and files."""
        return {name for name, _ in self.values} | self.files.keys()

    @property
    def text(self) -> str:
        """All of it, to search in."""
        contents = [content.decode("latin-1") for content in self.files.values()]
        return "\n".join([*(repr(value) for value in self.values), *contents])


class _Server(NeptuneBackendMock):  # type: ignore[misc]
    sent: Sent

    def create_run(self, *arguments: Any, **options: Any) -> Any:
        """Note what a new run says of itself."""
        self.sent.values.append(("create_run", (arguments, options)))
        return super().create_run(*arguments, **options)

    def execute_operations(
        self, container_id: Any, container_type: Any, operations: Any, operation_storage: Any
    ) -> Any:
        """Note values, and the content of files."""
        for operation in operations:
            name = "/".join(operation.path)
            self.sent.values.append((name, operation.to_dict()))
            if isinstance(operation, UploadFile):
                path = operation.get_absolute_path(operation_storage)
                self.sent.files[name] = Path(path).read_bytes()
            assert not (isinstance(operation, UploadFileSet) and operation.file_globs)
        return super().execute_operations(
            container_id, container_type, operations, operation_storage
        )


@contextmanager
def neptune_server() -> Iterator[Sent]:
    """Within it a token is set, and the client reaches a server."""
    sent = Sent()
    server = type("Server", (_Server,), {"sent": sent})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata_container, "get_backend", lambda mode, **_: server())
        patch.setenv("NEPTUNE_API_TOKEN", token())
        patch.setenv("NEPTUNE_PROJECT", "hospital/glioma")
        yield sent
