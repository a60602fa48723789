"""Whether a command line that a file shows would be understood by the program it calls.

Nothing is run: each line goes through the parser of its program, as installed.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import click
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

import ops.bench.__main__
import ops.chaos.__main__
import ops.cli
import ops.drain_node
from ops.flags import serve_config

ROOT = Path(__file__).parents[1]
_SETS = re.compile(r"[A-Za-z_]\w*=.*")
_OPERATORS = {";", "&&", "||", "|", "&"}


def commands_of(line: str) -> list[list[str]]:
    """The simple commands of a line of shell: no assignments before them, no redirections."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    words.whitespace_split = True
    commands: list[list[str]] = [[]]
    skip = False
    for word in words:
        if word in _OPERATORS:
            commands.append([])
        elif word in {">", ">>", "<"}:
            skip = True
        elif skip:
            skip = False
        elif commands[-1] or not _SETS.fullmatch(word):
            commands[-1].append(word)
    return [command for command in commands if command]


def check_line(line: str) -> list[str]:
    """Check each command of `line`; returns the names of the programs.

    Raises:
        AssertionError: names the command and what its program does not know of it.
    """
    names = []
    for command in commands_of(line):
        name = Path(command[0]).name
        if name == "python" and command[1:2] == ["-m"]:
            name, command = command[2], command[2:]
        if name in _CHECKS:
            _CHECKS[name](command[1:], line)
        names.append(name)
    return names


def check_mention(text: str) -> list[str]:
    """As check_line, but where a command is only named, without what it needs: the name."""
    program, *rest = text.split()
    if text == "windrose serve":
        return check_line(f"{text} MODEL_DIR")
    if program not in _RAY_GROUPS or len(rest) != 1:
        return check_line(text)
    assert rest[0] in _RAY_GROUPS[program].commands, f"{program} has no command {rest[0]}"
    return [program]


def _windrose(argv: list[str], line: str) -> None:
    parser = ops.cli._parser(argv)
    args, unknown = _parsed(parser, argv, line)
    assert not unknown, f"{line}: unknown {unknown}"
    if argv[0] == "serve" and "--help" not in argv:
        if args.config is not None:
            assert (ROOT / args.config).is_file(), line
            args.config = str(ROOT / args.config)
        serve_config(args)  # ValueError names the flag


def _bench(argv: list[str], line: str) -> None:
    _, unknown = _parsed(ops.bench.__main__._parser(), argv, line)
    assert not unknown, f"{line}: unknown {unknown}"


def _chaos(argv: list[str], line: str) -> None:
    _, unknown = _parsed(ops.chaos.__main__._parser(), argv, line)
    assert not unknown, f"{line}: unknown {unknown}"


def _drain_node(argv: list[str], line: str) -> None:
    try:
        ops.drain_node.arguments(argv)
    except SystemExit as error:
        raise AssertionError(f"{line}: refused") from error


def _parsed(
    parser: argparse.ArgumentParser, argv: list[str], line: str
) -> tuple[argparse.Namespace, list[str]]:
    try:
        return parser.parse_known_args(argv)
    except SystemExit as error:
        assert error.code == 0, f"{line}: {parser.prog} refuses it"  # 0: --help, --version
        return argparse.Namespace(), []


def _click(group: click.Command, argv: list[str], line: str) -> None:
    """Every name and option is known, and what must be given is."""
    command = group
    words = list(argv)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"{line}: {command.name} has no command {name}"
        command = command.commands[name]
    try:
        command.make_context(command.name, words)  # reads and checks, and calls nothing
    except click.UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from error


def _ray(argv: list[str], line: str) -> None:
    _click(ray_cli, argv, line)
    if argv[:1] in (["up"], ["exec"], ["attach"], ["down"], ["rsync-up"], ["monitor"]):
        file = next(word for word in argv[1:] if not word.startswith("-"))
        assert (ROOT / file).is_file(), f"{line}: there is no {file}"
    if argv[:1] == ["exec"]:
        check_line(argv[-1])


def _serve(argv: list[str], line: str) -> None:
    _click(serve_cli, argv, line)


def _make(argv: list[str], line: str) -> None:
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
    variables = re.findall(r"(?m)^([A-Z]+) \?=", (ROOT / "Makefile").read_text())
    for word in argv:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"{line}: make knows no {word}"


_RAY_GROUPS = {"ray": ray_cli, "serve": serve_cli}
_CHECKS = {
    "windrose": _windrose,
    "ops.bench": _bench,
    "ops.chaos": _chaos,
    "ops.drain_node": _drain_node,
    "ray": _ray,
    "serve": _serve,
    "make": _make,
}
