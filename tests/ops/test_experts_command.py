from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.cli import main
from tests.ops.http_stub import Reply, Stub, error_reply, json_reply, stub_server

ROOT = Path(__file__).parents[2]


def actor(rank: int, role: str, weights_bytes: int) -> dict[str, Any]:
    return {
        "pipeline": "p0",
        "rank": rank,
        "role": role,
        "pid": 4000 + rank,
        "node": f"10.0.0.{rank}",
        "device": "cpu",
        "phase": "serving",
        "weights_bytes": weights_bytes,
    }


BODY: dict[str, Any] = {
    "placement_version": 7,
    "placement": [[[1], [1], [2], [2]], [[1], [1], [2], [1, 2]]],
    "actors": [
        actor(2, "expert", 23_400_000_000),
        actor(0, "attention", 3_200_000_000),
        actor(1, "expert", 1_500_000),
    ],
    "tokens": [[10, 20, 30, 40], [1990, 0, 5, 5]],
    "balancedness": 0.37625,
}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("COLUMNS", "120")
    with stub_server() as server:
        server.replies["/v1/experts"] = json_reply(BODY)
        yield server


def rows(shown: str) -> list[list[str]]:
    """Cells of the lines that begin with a number, and of those of the actors' table."""
    lines = [re.split("[│|]", line.strip()[1:-1]) for line in shown.splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [line for line in cells if re.match(r"\d+$|p\d", line[0])]


def shown_by(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["experts", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    return out


def test_all_layers_together(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown_by(capsys, "--url", stub.url)
    assert "Experts of all 2 layers, placement version 7" in out
    assert "balancedness (mean/max load): 0.38 over all layers" in out
    assert rows(out)[:4] == [
        ["0", "1", "2,000", "95.2%", "█" * 24 + " hottest"],
        ["1", "1", "20", "1.0%", ""],
        ["2", "2", "35", "1.7%", ""],
        ["3", "1,2", "45", "2.1%", "█"],
    ]


def test_one_layer(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown_by(capsys, "--url", stub.url, "--layer", "0")
    assert "Experts of layer 0, placement version 7" in out
    assert "0.62 in this one" in out  # 25 / 40
    assert rows(out)[:4] == [
        ["0", "1", "10", "10.0%", "█" * 6],
        ["1", "1", "20", "20.0%", "█" * 12],
        ["2", "2", "30", "30.0%", "█" * 18],
        ["3", "2", "40", "40.0%", "█" * 24 + " hottest"],
    ]


def test_actors_stand_in_the_order_of_their_ranks(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rows(shown_by(capsys, "--url", stub.url))[4:] == [
        ["p0", "0", "attention", "4000", "10.0.0.0", "cpu", "serving", "3.2 GB"],
        ["p0", "1", "expert", "4001", "10.0.0.1", "cpu", "serving", "1.5 MB"],
        ["p0", "2", "expert", "4002", "10.0.0.2", "cpu", "serving", "23.4 GB"],
    ]


def test_json_is_what_the_server_said(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    later = BODY | {"of a later version": 1}
    stub.replies["/v1/experts"] = json_reply(later)
    assert json.loads(shown_by(capsys, "--url", stub.url, "--json")) == later
    assert rows(shown_by(capsys, "--url", stub.url))[0][2] == "2,000"


def test_before_the_first_token(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.replies["/v1/experts"] = json_reply(BODY | {"tokens": [[0] * 4, [0] * 4]})
    out = shown_by(capsys, "--url", stub.url)
    assert "no tokens yet" in out
    assert "hottest" not in out
    assert [row[2:4] for row in rows(out)[:4]] == [["0", "0.0%"]] * 4


def test_before_any_attention_actor_has_answered(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: dict[str, Any] = {"placement": [], "tokens": [], "actors": []}
    stub.replies["/v1/experts"] = json_reply(BODY | nothing)
    assert rows(shown_by(capsys, "--url", stub.url)) == []
    assert main(["experts", "--url", stub.url, "--layer", "0"]) == 2
    assert capsys.readouterr().err == "windrose experts: there is no layer 0: it tells of none\n"


@pytest.mark.parametrize("layer", ["2", "-1"])
def test_a_layer_that_is_not_there(
    stub: Stub, layer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", "--url", stub.url, "--layer", layer]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"windrose experts: there is no layer {layer}: the model has layers 0 to 1\n"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error_reply(503, "not ready"), "answered 503: not ready"),
        (json_reply({"detail": "what?"}), "did not answer as Windrose does"),
        (json_reply(BODY | {"placement": [[]]}), "did not answer as Windrose does"),
        (Reply(200, [b"<html>"]), "did not answer JSON"),
    ],
)
def test_a_failure_is_one_line(
    stub: Stub, reply: Reply, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.replies["/v1/experts"] = reply
    assert main(["experts", "--url", stub.url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("windrose experts: ")
    assert err.index("\n") == len(err) - 1


def test_layer_and_json_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["experts", "--layer", "0", "--json"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(("encoding", "full"), [("utf-8", "█" * 24), ("ascii", "#" * 24)])
def test_as_a_process_in_any_encoding(
    stub: Stub, encoding: str, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "experts", "--url", stub.url],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    assert done.stderr == b""
    assert done.returncode == 0
    assert rows(done.stdout.decode(encoding))[0] == ["0", "1", "2,000", "95.2%", f"{full} hottest"]
