"""From a configuration class to a command line, and from an error to an exit code."""

import argparse
import dataclasses
import io
import sys
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import set_loader

from segmodel.core.errors import ConfigError, SegmodelError
from segmodel.core.progress import say
from segmodel.settings import yaml_file
from segmodel.settings.flags import GROUPS, HelpFormatter, Metavar, Switch
from segmodel.settings.usage_errors import Parser, flag

Config = TypeVar("Config")


set_loader("yaml-1.2", yaml_file.load, exceptions=(yaml.YAMLError,))


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None,
    description: str | None,
    *,
    not_used: Sequence[str] = (),
) -> Config:
    """Read `config_class` from flags and from the YAML of `--config`; a flag wins over the file.

    A field `image_size` is the flag `--image-size` and the key `image_size`. The docstring of the
    field is the help text.

    Args:
        config_class: with the fields.
        argv: flags; None for those of the process.
        description: of the job: an example of the command; after an empty line, what the job does.
        not_used: settings of another job that shares the file; a line says that they are ignored.

    Raises:
        ConfigError: a value that the configuration's own checks refuse.
        SystemExit: with code 2 and the usage on stderr, for an unknown flag or key or a value of
            the wrong type.
    """
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]
    parser = _parser(config_class, description)
    for name in not_used:
        parser.add_argument(flag(name), type=Any, nargs="?", const=True, help=argparse.SUPPRESS)
    lists = [field.name for field in fields if get_origin(field.type) is tuple]
    arguments = _files_first(sys.argv[1:] if argv is None else argv, lists)
    values = parser.parse_args(arguments).as_dict()
    values.pop("config")
    given = [name for name in not_used if values.pop(name) is not None]
    if given:
        say(f"not used by this job: {', '.join(given)}")
    named = {argument.partition("=")[0] for argument in arguments}
    for field in fields:
        if _is_text(field.type):
            value = values[field.name]
            values[field.name] = _text(flag(field.name), value, flag(field.name) in named)
    return config_class(**values)


def _text(name: str, value: str | int | None, named: bool) -> str | None:
    """The value of a text field; a number in a file, without quotes, is a text, too.

    Raises:
        ConfigError: the flag is on the command line with a value that YAML reads as none.
    """
    if value is None and named:
        raise ConfigError(f"{name}: null and ~ mean no value; give one, or leave the flag out")
    return None if value is None else str(value)


def _parser(config_class: type[Any], description: str | None) -> Parser:
    """A parser with a flag for each field, in the groups of `GROUPS`.

    Args:
        config_class: with the fields; those that it names in HIDDEN are not shown.
        description: an example of the command; after an empty line, what the job does.
    """
    example, _, about = (description or "").partition("\n\n")
    parser = Parser(
        prog=_program(example),
        description=about.strip() or None,
        epilog=f"Example: {example.strip()}\n" if example else None,
        parser_mode="yaml-1.2",
        formatter_class=HelpFormatter,
        print_config="--print-config",
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file of settings, keys with underscores; flags override it",
    )
    for action in parser._actions:
        if "--print-config" in action.option_strings:
            action.help, action.metavar = "Print the settings as YAML and exit", ""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    parser.kinds = {name: field.type for name, field in fields.items()}
    help_texts = _help_texts(config_class)
    hidden = getattr(config_class, "HIDDEN", ())
    required = []
    for title, metavars in GROUPS.items():
        names = [name for name in metavars if name in fields]
        group = parser.add_argument_group(title) if names else None
        for name in names:
            shown = argparse.SUPPRESS if name in hidden else help_texts[name]
            _add(group, fields[name], shown, metavars[name])
            if fields[name].default is dataclasses.MISSING:
                value = metavars[name] or "|".join(get_args(fields[name].type))
                required.append(f"{flag(name)} {value}")
    parser.usage = " ".join(["%(prog)s", *required, "[options]"])
    return parser


def _help_texts(config_class: type[Any]) -> dict[str, str | None]:
    """The docstring of each field; it stands in the class that declares the field."""
    return {
        parameter.arg_name: parameter.description
        for owner in reversed(config_class.__mro__[:-1])
        for parameter in docstring_parser.parse_from_object(owner).params
    }


def run(main: Callable[[Sequence[str] | None], int]) -> int:
    """Call a job's main and return the exit code; SegmodelError and OSError become one message."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character of an id shows an escape; the job goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main(None)
    except SegmodelError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _files_first(argv: Sequence[str], lists: Collection[str]) -> list[str]:
    """Move each `--config` to the front: of two settings the last wins, which must be the flag.

    Args:
        argv: the command line.
        lists: settings that are lists, also in a file.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, others = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        return list(argv)  # the parser itself says what is wrong
    for file in found.config:
        _check_file(file, lists)
    return [f"--config={file}" for file in found.config] + others


def _check_file(file: str, lists: Collection[str]) -> None:
    """Check a file of settings, if it is there.

    Raises:
        ConfigError: it is not text in UTF-8, not YAML, without settings, or a key of `lists` has
            no list.
    """
    path = Path(file)
    if not path.is_file():
        return  # the parser says so
    text = yaml_file.decode(path.read_bytes(), f"--config {file}")
    try:
        values = yaml_file.load(text)
    except yaml.YAMLError as error:
        where = str(error).replace('"<unicode string>", ', "")
        raise ConfigError(f"--config {file}: not valid YAML: {where}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: it must hold lines such as `seed: 1`")
    for name in lists:
        if not isinstance(values.get(name, []), list):
            raise ConfigError(
                f"--config {file}: {name} takes a list such as [A, B], got {values[name]!r}"
            )


def _program(description: str | None) -> str | None:
    words = (description or "").split()
    return " ".join(words[:3]) if words[:2] == ["python", "-m"] else None


def _add(
    group: Any, field: dataclasses.Field[Any], help_text: str | None, metavar: Metavar
) -> None:
    name = flag(field.name)
    required = field.default is dataclasses.MISSING
    if field.type is bool:
        group.add_argument(name, action=Switch(), default=False, help=help_text)
        return
    # `|` does not take a variable of any type.
    kind: Any = Union[field.type, int] if _is_text(field.type) else field.type  # noqa: UP007
    options: dict[str, Any] = {"type": kind, "required": required, "help": help_text}
    if metavar is not None:
        options["metavar"] = metavar
    if not required:
        options["default"] = field.default
    if (elements := _elements(field.type)) is not None:
        nargs = "+" if elements[-1] is Ellipsis else len(elements)
        options |= {"type": elements[0], "nargs": nargs}
        if not required and field.default is not None:
            options["default"] = list(options["default"])  # the parser writes into it
    group.add_argument(name, **options)


def _is_text(annotation: Any) -> bool:
    return annotation in (str, str | None)


def _elements(annotation: Any) -> tuple[Any, ...] | None:
    """Types of the elements of a tuple, or of a tuple that may be None; None for another type."""
    if get_origin(annotation) in (Union, types.UnionType):
        found = (_elements(option) for option in get_args(annotation))
        return next((elements for elements in found if elements), None)
    return get_args(annotation) if get_origin(annotation) is tuple else None
