"""The flags of `windrose serve`, made from the fields of WindroseConfig: one definition of each.

`max_num_seqs` is the flag `--max-num-seqs` and a key of `--config FILE`; `model` is the
positional MODEL_DIR. A name that ends in its unit (`shutdown_timeout_s`) also has a flag
without it (`--shutdown-timeout`).
"""

from __future__ import annotations

import difflib
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.config_file import read_config_file
from configs.schema import WindroseConfig

_POSITIONAL = "model"
_UNIT = "_s"


def add_serve_flags(parser: ArgumentParser) -> None:
    """Add MODEL_DIR, --config and one flag for every other field, under its group's heading.

    Flags take text; WindroseConfig turns it into values, as it does with a file's.
    """
    model = WindroseConfig.model_fields[_POSITIONAL]
    parser.add_argument(
        _POSITIONAL, nargs="?", default=SUPPRESS, metavar="MODEL_DIR", help=model.description
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings; flags win over it, and it may name the `model`",
    )
    groups = {}
    for name, field in WindroseConfig.model_fields.items():
        if name == _POSITIONAL:
            continue
        heading = _group(field)
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        groups[heading].add_argument(
            *flags_of(name),
            dest=name,
            default=SUPPRESS,
            action="append" if _is_list(field) else "store",
            choices=_choices(field),
            metavar=_metavar(name, field),
            help=_help(field),
        )


def serve_config(args: Namespace) -> WindroseConfig:
    """The settings of a parsed command line, over those of its --config file.

    Raises:
        OSError: the file cannot be read.
        ValueError: what is wrong, in one line that names the flag, or the key and the file.
    """
    given = {name: value for name, value in vars(args).items() if name in _FIELDS}
    file_settings = read_config_file(args.config) if args.config is not None else {}
    try:
        return WindroseConfig.model_validate({**file_settings, **given})
    except ValidationError as error:
        faults = [_fault(details, given, args.config) for details in error.errors()]
        raise ValueError("; ".join(faults)) from error


def flags_of(name: str) -> list[str]:
    """The flags that set the field `name`, the one to prefer first."""
    dashed = "--" + name.replace("_", "-")
    return [dashed.removesuffix("-s"), dashed] if name.endswith(_UNIT) else [dashed]


_FIELDS = frozenset(WindroseConfig.model_fields)


def _fault(details: ErrorDetails, given: Mapping[str, Any], file: str | None) -> str:
    name = str(details["loc"][0])
    kind, message = details["type"], details["msg"]
    if kind == "missing":
        return "MODEL_DIR is missing: give it, or `model` in a --config file"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(name, _FIELDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{file}: unknown key {name}{hint}"
    reason = message.removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    where = _shown(name) if name in given else f"{file}: {name}"
    shown = "" if SecretStr in _types(WindroseConfig.model_fields[name]) else repr(details["input"])
    return f"{where} {shown}".rstrip() + f": {reason}"


def _shown(name: str) -> str:
    return "MODEL_DIR" if name == _POSITIONAL else flags_of(name)[0]


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "every field of the schema has a group"
    return str(extra["group"])


def _choices(field: FieldInfo) -> tuple[str, ...] | None:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else None


def _metavar(name: str, field: FieldInfo) -> str | None:
    """What stands for the value in --help; None leaves it to the choices."""
    if _choices(field):
        return None
    if name.endswith(_UNIT):
        return "SECONDS"
    return "N" if _types(field) & {int, float} else "TEXT"


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _types(field: FieldInfo) -> set[object]:
    return {field.annotation, *get_args(field.annotation)}


def _help(field: FieldInfo) -> str:
    text = str(field.description).replace("%", "%%")
    return text if field.default in (None, ()) else f"{text} (default: {field.default})"
