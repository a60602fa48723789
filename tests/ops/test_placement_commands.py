from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.cli import main
from ops.placement import layer_ranges
from tests.ops.http_stub import Reply, Stub, error_reply, json_reply, stub_server
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CHANGES = ("replicate", "move", "drop", "rebalance", "scale")
ASKS = {
    "replicate": ["3"],
    "move": ["3"],
    "drop": ["3"],
    "rebalance": [],
    "scale": ["--expert-actors", "2"],
}


def copies(*triples: tuple[int, int, int]) -> list[dict[str, int]]:
    return [{"layer": layer, "expert": expert, "rank": rank} for layer, expert, rank in triples]


MOVED: dict[str, Any] = {
    "pipeline": "p0",
    "placement_version": 8,
    "applied": True,
    "reason": "expert 3 moved from rank 1 to rank 2.",
    "added": copies((0, 3, 2), (2, 3, 2), (1, 3, 2), (5, 3, 2)),
    "dropped": copies((0, 3, 1)),
    "took_s": 12.34,
}
IDLE: dict[str, Any] = {
    "pipeline": "p1",
    "placement_version": 7,
    "applied": False,
    "reason": "the balancer would change nothing",
    "added": [],
    "dropped": [],
    "took_s": 0.0,
}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("COLUMNS", "100")
    with stub_server() as server:
        for name in CHANGES:
            server.replies[f"/v1/experts/{name}"] = json_reply({"pipelines": [MOVED, IDLE]})
        yield server


def rows(shown: str) -> list[list[str]]:
    """Cells of the table's lines, without its headings."""
    lines = [line.strip() for line in shown.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line[1:-1].split("│")] for line in lines]


def exit_of(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("argv", "body"),
    [
        (["replicate", "3"], {"expert": 3}),
        (["replicate", "0", "--layer", "0", "--to", "0"], {"expert": 0, "layer": 0, "to": 0}),
        (["move", "3"], {"expert": 3}),
        (["move", "--from", "1", "--to", "2", "3"], {"expert": 3, "from": 1, "to": 2}),
        (["move", "3", "--layer", "31"], {"expert": 3, "layer": 31}),
        (["drop", "3"], {"expert": 3}),
        (["drop", "3", "--layer", "1", "--rank", "2"], {"expert": 3, "layer": 1, "rank": 2}),
        (["rebalance"], {"dry_run": False}),
        (["rebalance", "--dry-run"], {"dry_run": True}),
        (["scale", "--expert-actors", "4"], {"expert_actors": 4}),
    ],
)
def test_what_is_asked(stub: Stub, argv: list[str], body: dict[str, Any]) -> None:
    assert main(["experts", *argv, "--url", stub.url]) == 0
    assert main(["experts", "--url", f"{stub.url}/v1", *argv]) == 0  # or before the change
    assert stub.posts == [(f"/v1/experts/{argv[0]}", body)] * 2


def test_one_line_for_each_pipeline_and_a_table_of_the_copies(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", "move", "3", "--url", stub.url]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:2] == [
        "pipeline p0: expert 3 moved from rank 1 to rank 2 (now placement version 8, 12.3 s)",
        "pipeline p1: the balancer would change nothing"
        " (nothing changed, still placement version 7, 0.0 s)",
    ]
    assert rows(out) == [["p0", "added", "3", "0-2,5", "2"], ["p0", "dropped", "3", "0", "1"]]


def test_a_pipeline_that_refuses_is_told_of_and_fails_the_command(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"pipelines": [MOVED], "refused": ["rank 2 is being replaced: try again later"]}
    stub.replies["/v1/experts/move"] = json_reply(said)
    for flags in ([], ["--json"]):
        assert main(["experts", "move", "3", "--url", stub.url, *flags]) == 1
        out, err = capsys.readouterr()
        assert "p0" in out
        assert err == (
            "windrose experts move: one pipeline refused: rank 2 is being replaced: try again"
            " later\n"
        )


def test_a_dry_run_says_what_it_would_do(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    dry = MOVED | {"applied": False, "placement_version": 7}
    stub.replies["/v1/experts/rebalance"] = json_reply({"pipelines": [dry]})
    assert main(["experts", "rebalance", "--dry-run", "--url", stub.url]) == 0
    out = capsys.readouterr().out
    assert "(nothing changed, still placement version 7" in out
    assert [row[1] for row in rows(out)] == ["to add", "to drop"]


def test_no_table_where_nothing_changes(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    later = IDLE | {"of a later version": 1}
    stub.replies["/v1/experts/rebalance"] = json_reply({"pipelines": [later], "more": 2})
    assert main(["experts", "rebalance", "--url", stub.url]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("before", [True, False])
def test_json_is_what_the_server_said(
    stub: Stub, before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"pipelines": [MOVED], "of a later version": 1}
    stub.replies["/v1/experts/move"] = json_reply(said)
    argv = ["--json", "move", "3"] if before else ["move", "3", "--json"]
    assert main(["experts", "--url", stub.url, *argv]) == 0
    assert json.loads(capsys.readouterr().out) == said


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error_reply(409, "another change is under way"), "409: another change is under way\n"),
        (error_reply(400, "there is no rank 9"), "400: there is no rank 9\n"),
        (error_reply(503, "the server is shutting down"), "503: the server is shutting down\n"),
        (json_reply({"detail": "what?"}), "did not answer as Windrose does"),
        (json_reply({"pipelines": [{"pipeline": "p0"}]}), "did not answer as Windrose does"),
        (Reply(200, [b"<html>"]), "did not answer JSON"),
    ],
)
def test_a_refusal_is_one_line(
    stub: Stub, name: str, reply: Reply, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.replies[f"/v1/experts/{name}"] = reply
    assert main(["experts", name, *ASKS[name], "--url", stub.url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith(f"windrose experts {name}: ")
    assert err.index("\n") == len(err) - 1


def test_no_server_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["experts", "replicate", "3", "--url", url]) == 1
    assert capsys.readouterr().err.startswith(
        f"windrose experts replicate: no server answers at {url}"
    )


def test_loading_may_take_long_and_connecting_may_not(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[dict[str, float]] = []
    send = httpx.Client.send

    def watched(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", watched)
    for name in CHANGES:
        assert main(["experts", name, *ASKS[name], "--url", stub.url]) == 0
    assert len(timeouts) == len(CHANGES)
    assert all(one["read"] >= 1800 and one["connect"] <= 10 for one in timeouts)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["replicate"], "EXPERT"),
        (["replicate", "-1"], "argument EXPERT: '-1' is not a whole number from 0 on"),
        (["replicate", "x"], "argument EXPERT: 'x'"),
        (["replicate", "3", "--layer", "1.5"], "argument --layer: '1.5'"),
        (["replicate", "3", "--rank", "1"], "unknown: --rank 1"),
        (["move", "3", "--from", "-1"], "argument --from: '-1'"),
        (["move", "3", "--to", "two"], "argument --to: 'two'"),
        (["drop", "3", "4"], "unknown: 4"),
        (["drop", "3", "--rank", ""], "argument --rank: ''"),
        (["rebalance", "3"], "unknown: 3"),
        (["rebalance", "--dry"], "unknown: --dry"),
        (["scale"], "--expert-actors"),
        (["scale", "--expert-actors", "0"], "'0' is not a whole number from 1 on"),
        (["scale", "4"], "--expert-actors"),
        (["replicat", "3"], "invalid choice: 'replicat'"),
        (["--layer", "0", "rebalance"], "--layer before rebalance has no meaning"),
        (["move", "3", "--url", "here"], "does not begin with http"),
    ],
)
def test_bad_arguments_are_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of("experts", *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("windrose experts")
    assert err.index("\n") == len(err) - 1


@pytest.mark.parametrize("name", CHANGES)
def test_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("experts", "--help") == 0
    assert re.search(rf"^    {name}\b", capsys.readouterr().out, re.MULTILINE)
    assert exit_of("experts", name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: windrose experts {name} [-h]")
    assert f"examples:\n  windrose experts {name}" in out
    assert "--url URL" in out
    assert "--json" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_waits_for_no_heavy_import() -> None:
    code = (
        "import atexit, sys\n"
        "from ops.cli import main\n"
        "atexit.register(lambda: print('\\nLOADED', *sys.modules))\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "experts", "move", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    loaded = set(done.stdout.partition("\nLOADED ")[2].split())
    assert "ops.experts_flags" in loaded
    assert loaded & {"pydantic", "yaml", "httpx", "rich", "ray", "torch"} == set()


@given(st.sets(st.integers(0, 40)))
def test_layer_ranges_tell_all_layers_and_are_as_few_as_can_be(layers: set[int]) -> None:
    text = layer_ranges(layers)
    ends = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    told = [layer for end in ends for layer in range(end[0], end[-1] + 1)]
    assert told == sorted(layers)
    assert len(ends) == sum(layer - 1 not in layers for layer in layers)
