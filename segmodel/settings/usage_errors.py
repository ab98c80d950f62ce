"""Messages about flags and settings that do not fit, in words for people."""

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser

_KEY = re.compile(r'Parser key "(?P<key>\w+)"(?: element \d+)?:')
_GOT = re.compile(r"(?:Got value|Given value): (?P<value>.*)")
_TWIN = re.compile(r", --[\w-]+\+")
"""jsonargparse adds `--epochs+` to the names of a list."""
_REQUIRED = "the following arguments are required: "
_UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<flags>.*)|Option '(?P<key>[^']+)' is not accepted"
)


class Parser(ArgumentParser):
    """A parser whose messages name flags and values, and not Python's types."""

    kinds: dict[str, Any]
    """Type of each setting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the usage and the message; exit with 2."""
        super().error(explain(message, self.kinds), ex)


def explain(message: str, kinds: dict[str, Any]) -> str:
    """A message of the parser in words for people; another message stays as it is.

    Args:
        message: of jsonargparse or argparse.
        kinds: type of each setting.
    """
    if message.startswith(_REQUIRED):
        names = message.removeprefix(_REQUIRED).split(", ")
        return f"missing: {', '.join(map(flag, names))}"
    if unknown := _UNKNOWN.fullmatch(message):
        return _unknown(unknown["flags"], unknown["key"], kinds)
    found = _KEY.match(message)
    if found is None:
        return _TWIN.sub("", message)
    if found["key"] not in kinds:
        return f"{flag(found['key'])}:{message[found.end() :]}"
    values = _GOT.findall(message)
    got = f", got {values[-1]}" if values else ""
    return f"{flag(found['key'])} takes {_in_words(kinds[found['key']])}{got}"


def flag(name: str) -> str:
    """The flag of a setting: `--image-size` for `image_size`."""
    return "--" + name.replace("_", "-")


def _unknown(flags: str | None, key: str | None, kinds: Iterable[str]) -> str:
    """A message about flags, or a key of a file, that do not exist, with the most similar one."""
    if key is not None:
        similar = difflib.get_close_matches(key, list(kinds), n=1)
        return f"no such setting: {key}" + (f"; did you mean {similar[0]}?" if similar else "")
    known = [flag(name) for name in kinds]
    for word in (flags or "").split():
        name = word.partition("=")[0]
        if name.startswith("--") and (similar := difflib.get_close_matches(name, known, n=1)):
            return f"no such flag: {name}; did you mean {similar[0]}?"
    if (flags or "").startswith("--"):
        return f"no such flag: {flags}"
    return f"no flag takes this: {flags} (a switch such as --overwrite takes no value)"


def _in_words(kind: Any) -> str:
    """What values a type has: `auto, bf16 or fp32`; `a number`."""
    if get_origin(kind) is Literal:
        return _either(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return _either([_in_words(one) for one in get_args(kind) if one is not type(None)])
    if get_origin(kind) is list:
        return "a list such as [A,B] without spaces"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


def _either(options: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(part for part in (", ".join(options[:-1]), options[-1]) if part)
