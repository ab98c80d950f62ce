"""YAML files of users: UTF-8, the core schema of YAML 1.2, no key twice."""

import re
from typing import Any

import yaml

from segmodel.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2, where `on` and `1:8` are text; to YAML 1.1 they are true and 68.

    A key that comes twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _kind, _text in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(0|[1-9][0-9]*)"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_text})$"), None)


def load(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, or a key comes twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def decode(content: bytes, name: str) -> str:
    """The text of a file.

    Args:
        content: of the file.
        name: of the file, for the message.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: not text in UTF-8 ({error.reason} at byte {error.start}); save it in UTF-8"
        ) from error
