"""From a configuration class to a command line, and from an error to an exit code."""

import argparse
import dataclasses
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser

from segmodel.errors import SegmodelError

Config = TypeVar("Config")


def parse(
    config_class: type[Config], argv: Sequence[str] | None, description: str | None, *, not_used: Sequence[str] = ()
) -> Config:
    """Read `config_class` from flags and from the YAML of `--config`; a flag wins over the file.

    A field `image_size` is the flag `--image-size` and the key `image_size`; its docstring is the help text.

    Args:
        config_class: with the fields.
        argv: flags; None for those of the process.
        description: of the job.
        not_used: settings of another job that may stand in a file for both; a line says that they are not used.

    Raises:
        ConfigError: a value that the configuration's own checks refuse.
        SystemExit: with code 2 and the usage on stderr, for a flag or key that does not exist or has the wrong type.
    """
    parser = ArgumentParser(prog=_program(description), description=description)
    parser.add_argument("--config", action="config", help="YAML file of settings, keys with underscores; flags override it")
    help_texts = {
        parameter.arg_name: parameter.description
        for owner in reversed(config_class.__mro__[:-1])  # a field's docstring stands in the class that declares it
        for parameter in docstring_parser.parse_from_object(owner).params
    }
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        _add(parser, field, help_texts.get(field.name))
    for name in not_used:
        parser.add_argument("--" + name.replace("_", "-"), type=Any, help=argparse.SUPPRESS)
    values = parser.parse_args(_files_first(sys.argv[1:] if argv is None else argv)).as_dict()
    values.pop("config")
    given = [name for name in not_used if values.pop(name) is not None]
    if given:
        print(f"not used by this job: {', '.join(given)}", flush=True)
    return config_class(**values)


def run(main: Callable[[Sequence[str] | None], int]) -> int:
    """Call a job's main; an error made for users, or of disks and networks, becomes one message on stderr and an exit code."""
    try:
        return main(None)
    except SegmodelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _files_first(argv: Sequence[str]) -> list[str]:
    """Each `--config` moved to the front: the parser lets the later of two settings win, and that must be the flag."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, others = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        return list(argv)  # the parser itself says what is wrong
    return [f"--config={file}" for file in found.config] + others


def _program(description: str | None) -> str | None:
    words = (description or "").split()
    return " ".join(words[:3]) if words[:2] == ["python", "-m"] else None


def _add(parser: ArgumentParser, field: dataclasses.Field[Any], help_text: str | None) -> None:
    flag = "--" + field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING
    if field.type is bool:
        parser.add_argument(flag, action="store_true", help=help_text)
        return
    options: dict[str, Any] = {"type": field.type, "required": required, "help": help_text}
    if not required:
        options["default"] = field.default
    if _is_tuple(field.type):
        options |= {"type": float, "nargs": 3, "metavar": field.metadata["metavar"]}
    parser.add_argument(flag, **options)


def _is_tuple(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_tuple(option) for option in get_args(annotation))
    return get_origin(annotation) is tuple
