from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import ops.serve
from configs.schema import WindroseConfig
from ops.cli import main

ROOT = Path(__file__).parents[2]


def exit_of(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_teaches_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    out = capsys.readouterr().out
    for words in ("serve", "chat", "experts", "version", "windrose serve configs/demo", "examples"):
        assert words in out


@pytest.mark.parametrize("command", ["serve", "chat", "experts", "convert", "inspect"])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(command, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: windrose {command}")
    assert f"examples:\n  windrose {command}" in out


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_the_version_is_the_package_s(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if argv == ["version"]:
        assert main(argv) == 0
    else:
        assert exit_of(*argv) == 0
    assert capsys.readouterr().out == f"windrose {version('windrose')}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["sail"], "invalid choice: 'sail'"),
        (["--colour"], "COMMAND"),
        (["version", "2"], "unknown: 2"),
        (["experts", "--lay", "1"], "unknown: --lay 1"),
    ],
)
def test_bad_arguments_are_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("windrose")
    assert err.index("\n") == len(err) - 1


def test_serve_gets_the_config_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[WindroseConfig] = []

    def serve(config: WindroseConfig) -> int:
        served.append(config)
        return 3

    monkeypatch.setattr(ops.serve, "serve", serve)
    assert main(["serve", "m", "--expert-actors", "2"]) == 3
    assert served == [WindroseConfig(model="m", expert_actors=2)]


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("", {"pydantic", "yaml", "httpx", "rich", "ray", "torch"}),
        ("serve", {"httpx", "rich", "ray", "torch"}),
        ("chat", {"pydantic", "yaml", "httpx", "rich", "ray", "torch"}),
    ],
)
def test_help_waits_for_no_heavy_import(command: str, heavy: set[str]) -> None:
    code = (
        "import atexit, sys\n"
        "from ops.cli import main\n"
        "atexit.register(lambda: print('\\nLOADED', *sys.modules))\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    loaded = set(done.stdout.partition("\nLOADED ")[2].split())
    assert "ops.cli" in loaded
    assert loaded & heavy == set()


def test_the_command_is_installed_under_its_name() -> None:
    (script,) = entry_points(group="console_scripts", name="windrose")
    assert script.load() is main
