"""cluster/Dockerfile, read and not built: no Docker daemon is needed, nor a network."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from dataclasses import dataclass

from actors.http.api import create_api
from configs.schema import WindroseConfig
from tests.actors.http_serving import make_state
from tests.command_lines import ROOT, check_line

PATH = ROOT / "cluster/Dockerfile"
KNOWN = set(
    [
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "STOPSIGNAL",
        "CMD",
    ]
)


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    text: str


def instructions() -> list[Instruction]:
    """With continued lines joined; comments left out, also those between continued lines."""
    lines = [line for line in PATH.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name, text.strip()) for name, text in split]


def last_stage() -> list[Instruction]:
    found = instructions()
    start = max(index for index, one in enumerate(found) if one.name == "FROM")
    return found[start:]


def only(name: str) -> str:
    (one,) = [one.text for one in last_stage() if one.name == name]
    return one


def shown_commands() -> list[str]:
    comment = [line[1:].strip() for line in PATH.read_text().splitlines() if line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(comment))
    return [line for line in joined.splitlines() if line.startswith("docker ")]


def test_every_instruction_is_one() -> None:
    assert {one.name for one in instructions()} <= KNOWN


def test_both_stages_stand_on_one_pinned_base() -> None:
    (base,) = [one.text for one in instructions() if one.name == "ARG" and "BASE" in one.text]
    name, _, image = base.partition("=")
    assert instructions()[0] == Instruction("ARG", base), "before the first FROM, or it is not seen"
    assert re.fullmatch(r"python:3\.1[1-9]\.\d+-slim-\w+", image), "a full version"
    stages = [one.text for one in instructions() if one.name == "FROM"]
    assert stages == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    assert name == "BASE_IMAGE"
    cuda = [line for line in shown_commands() if "BASE_IMAGE=" in line]
    assert re.search(r"BASE_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04 ", cuda[0])


def test_it_does_not_run_as_root() -> None:
    stage = last_stage()
    user = only("USER")
    assert user == "1000:1000"
    after = [one.name for one in stage[stage.index(Instruction("USER", user)) :]]
    assert not {"RUN", "COPY"} & set(after), "nothing is made as root after it"


def test_what_is_copied_is_there_and_not_ignored() -> None:
    for one in instructions():
        if one.name != "COPY" or "--from=" in one.text:
            continue
        *sources, _ = shlex.split(one.text)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not ignored(source), source


def ignored(path: str) -> bool:
    """As Docker reads the file: the last pattern that matches decides; a folder decides for all."""
    result = False
    for line in (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        names = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names += parts if "**/" in line else []
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            result = not line.startswith("!")
    return result


def test_nothing_else_goes_to_the_build() -> None:
    for path in (".git", ".venv", "tests", "tests/ports.py", "shared", "model/__pycache__/x.pyc"):
        assert ignored(path), path
    assert ignored("model/cpu_kernels/_avx2.so"), "built in the image, for its Python"
    assert not ignored("model/cpu_kernels/linear.cpp")


def test_all_that_is_installed_is_copied() -> None:
    sources = {
        source
        for one in instructions()
        if one.name == "COPY" and "--from=" not in one.text
        for source in shlex.split(one.text)[:-1]
    }
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == {"actors", "cluster", "configs", "model", "ops"}
    assert folders | {"pyproject.toml", "README.md", "LICENSE"} <= sources


def test_its_health_is_the_server_s() -> None:
    port = WindroseConfig(model="m").port
    assert only("EXPOSE") == str(port)
    check = only("HEALTHCHECK")
    program = json.loads(check[check.index("CMD ") + 4 :])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "HEALTHCHECK", "exec")
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", program[2])
    assert url == (str(port), "/health")
    assert url[1] in {getattr(route, "path", None) for route in create_api(make_state()).routes}
    assert {word.split("=")[0] for word in check.split() if word.startswith("--")} == {
        "--interval",
        "--timeout",
        "--start-period",
        "--retries",
    }


def test_what_it_runs_is_a_command_of_windrose() -> None:
    argv = json.loads(only("CMD"))
    assert check_line(shlex.join(argv)) == ["windrose"]
    assert "0.0.0.0" in argv, "the container's loopback is nobody's"
    assert "/models/demo" in argv
    assert Instruction("COPY", "configs/demo /models/demo") in last_stage()


def test_the_commands_that_build_and_run_it() -> None:
    builds = [line for line in shown_commands() if line.startswith("docker build ")]
    runs = [line for line in shown_commands() if line.startswith("docker run ")]
    assert (len(builds), len(runs)) == (2, 2)
    for line in builds:
        assert "-f cluster/Dockerfile " in line
        assert line.endswith(" .")
    (served,) = [line for line in runs if "windrose serve" in line]
    assert check_line(served[served.index("windrose serve") :]) == ["windrose"]


def test_the_user_can_run_what_it_copies() -> None:
    script = ROOT / "cluster/node/fetch_weights.sh"
    assert script.stat().st_mode & 0o005 == 0o005
