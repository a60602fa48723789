"""cluster/node/: the scripts that a machine runs, with stand-ins for all programs they call."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_lines import ROOT

NODE = ROOT / "cluster/node"
PINNED = "git+https://git.example.org/windrose.git@v0.1.0"


@dataclass(frozen=True, slots=True)
class Machine:
    """A home folder, the scripts in it, and programs that only write down how they were called."""

    home: Path

    @property
    def node(self) -> Path:
        return self.home / "windrose/node"

    def stand_in(self, name: str, does: str = "") -> None:
        program = self.home / "bin" / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> ~/calls\n{does}\n')
        program.chmod(0o755)

    def calls(self) -> list[str]:
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def set(self, **values: str) -> None:
        path = self.node / "settings.env"
        lines = "".join(f'export {name}="{value}"\n' for name, value in values.items())
        path.write_text(path.read_text() + lines)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", *argv],
            env={"HOME": str(self.home), "PATH": f"{self.home}/bin"},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def fetch(self, source: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.node / "fetch_weights.sh"), source, str(self.models / "m"))

    @property
    def models(self) -> Path:
        return self.home / "models"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "chmod", "dirname", "grep", "id", "ln", "mkdir", "mv", "touch"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")
    machine.node.mkdir(parents=True)
    for file in NODE.iterdir():
        copy = machine.node / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(file.stat().st_mode)
    machine.stand_in("sudo", 'case "$1" in install) shift; mkdir -p "${@: -1}" ;; esac')
    # `python3 -m venv DIR` makes a python there that notes what it is asked to install.
    venv_python = "printf '#!/bin/bash\\necho \"pip ${@:3}\" >> ~/calls\\n'"
    machine.stand_in(
        "python3", f'mkdir -p "$3/bin"; {venv_python} > "$3/bin/python"; chmod +x "$3/bin/python"'
    )
    for name in ("aws", "gcloud", "hf"):
        machine.stand_in(name, f"mkdir -p {machine.models}/m; touch {machine.models}/m/config.json")
    machine.set(
        WINDROSE_SOURCE=PINNED,
        WINDROSE_WEIGHTS="s3://bucket/mixtral",
        WINDROSE_MODEL_DIR=str(machine.models / "m"),
    )
    return machine


def test_the_scripts_are_sound_bash() -> None:
    for script in ("setup.sh", "fetch_weights.sh", "settings.env"):
        done = subprocess.run(["bash", "-n", NODE / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (NODE / "fetch_weights.sh").stat().st_mode & 0o111, "setup.sh runs it"


@pytest.mark.parametrize(
    ("source", "call"),
    [
        (
            "s3://bucket/mixtral/",
            "aws s3 sync s3://bucket/mixtral {m} --no-progress --exclude *"
            " --include *.json --include *.safetensors --include tokenizer.model"
            " --include chat_template.jinja",
        ),
        ("gs://bucket/mixtral", "gcloud storage rsync gs://bucket/mixtral {m}"),
        (
            "hf://mistralai/Mixtral-8x7B-v0.1",
            "hf download mistralai/Mixtral-8x7B-v0.1 --local-dir {m}"
            " --include *.json --include *.safetensors --include tokenizer.model"
            " --include chat_template.jinja",
        ),
        (
            "hf://mistralai/Mixtral-8x7B-v0.1@0123abc",
            "hf download mistralai/Mixtral-8x7B-v0.1 --revision 0123abc --local-dir {m}"
            " --include *.json --include *.safetensors --include tokenizer.model"
            " --include chat_template.jinja",
        ),
    ],
)
def test_the_source_of_the_weights_chooses_the_program(
    machine: Machine, source: str, call: str
) -> None:
    done = machine.fetch(source)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [call.format(m=machine.models / "m")]


def test_weights_that_are_there_are_linked(machine: Machine) -> None:
    there = machine.home / "shared/mixtral"
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")
    for _ in range(2):  # again: nothing to do
        done = machine.fetch(str(there))
        assert done.returncode == 0, done.stderr
        assert (machine.models / "m/config.json").read_text() == "{}"
    assert (machine.models / "m").resolve() == there
    assert machine.fetch(str(machine.models / "m")).returncode == 0, "the directory itself"
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/mixtral", "/nowhere/mixtral: no such directory"),
        ("mixtral", "mixtral: begins with none of s3://"),
        ("hf://mixtral", "hf://mixtral: begins with none of"),
        ("s3://", "s3://: begins with none of"),
    ],
)
def test_other_sources_are_refused_by_name(machine: Machine, source: str, reason: str) -> None:
    done = machine.fetch(source)
    assert done.returncode == 1
    assert done.stderr.startswith(f"fetch_weights.sh: {reason}")


def test_a_source_without_a_checkpoint_is_refused(machine: Machine) -> None:
    machine.stand_in("gcloud", f"mkdir -p {machine.models}/m")
    done = machine.fetch("gs://bucket/empty")
    assert done.returncode == 1
    assert "gs://bucket/empty: no config.json there" in done.stderr


def test_a_failed_download_fails_the_machine(machine: Machine) -> None:
    machine.stand_in("aws", "exit 3")
    done = machine.run(str(machine.node / "setup.sh"))
    assert done.returncode == 3


def test_a_machine_is_set_up_once(machine: Machine) -> None:
    first = machine.run(str(machine.node / "setup.sh"))
    assert first.returncode == 0, first.stderr
    calls = machine.calls()
    assert f"pip install --upgrade windrose @ {PINNED}" in calls
    assert [call for call in calls if call.startswith("sudo apt-get") and "install" in call]
    assert calls[-1].startswith(f"aws s3 sync s3://bucket/mixtral {machine.models}/m")
    again = machine.run(str(machine.node / "setup.sh"))
    assert again.returncode == 0, again.stderr
    new = machine.calls()[len(calls) :]
    assert [call.split()[0] for call in new] == ["sudo", "aws"], "the folder, and what is missing"
    bashrc = (machine.home / ".bashrc").read_text()
    assert bashrc == f". {machine.node}/settings.env\n"


def test_another_version_is_installed_over_the_first(machine: Machine) -> None:
    machine.run(str(machine.node / "setup.sh"))
    machine.set(WINDROSE_SOURCE=PINNED.replace("v0.1.0", "v0.2.0"))
    machine.run(str(machine.node / "setup.sh"))
    assert [call for call in machine.calls() if "windrose @" in call and "v0.2.0" in call]


def test_a_user_s_own_shell_file_is_kept(machine: Machine) -> None:
    (machine.home / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\nexport MINE=1\n")
    machine.run(str(machine.node / "setup.sh"))
    lines = (machine.home / ".bashrc").read_text().splitlines()
    assert lines[0] == f". {machine.node}/settings.env"
    assert lines[1:] == ["case $- in *i*) ;; *) return ;; esac", "export MINE=1"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "WINDROSE_SOURCE in cluster/node/settings.env is still the example"),
        ("git+https://git.example.org/windrose.git", "names no version"),
        ("git+ssh://git@git.example.org/windrose.git", "names no version"),
        ("windrose", "begins neither with git+ nor with /"),
    ],
)
def test_what_is_not_pinned_is_not_installed(
    machine: Machine, source: str | None, reason: str
) -> None:
    if source is None:
        (machine.node / "settings.env").write_bytes((NODE / "settings.env").read_bytes())
    else:
        machine.set(WINDROSE_SOURCE=source)
    done = machine.run(str(machine.node / "setup.sh"))
    assert done.returncode == 1
    assert reason in done.stderr
    assert machine.calls() == []


def test_a_missing_program_is_named(machine: Machine) -> None:
    (machine.home / "bin/gcloud").unlink()
    done = machine.fetch("gs://bucket/mixtral")
    assert done.returncode == 1
    assert "gs://bucket/mixtral: gcloud is not installed" in done.stderr
