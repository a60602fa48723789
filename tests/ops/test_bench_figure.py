"""`python -m ops.bench figure`: the picture says what the result says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ops.bench.__main__ import main
from ops.bench.bar_chart import COLOURS, INK, Bar, bar_chart, round_up
from ops.bench.figure import bars_of

SVG = "{http://www.w3.org/2000/svg}"


def figure(median: float) -> dict[str, Any]:
    return {"median": median, "min": median * 0.5, "max": median * 1.25, "rounds": [median]}


def line(results: list[dict[str, Any]], bench: str = "compare") -> dict[str, Any]:
    return {
        "bench": bench,
        "date": "2026-03-04T05:06:07+00:00",
        "hardware": {"cpu": "Some CPU", "cores": 2, "memory_bytes": 1, "gpu": None},
        "config": {"model": "mid <1>"},
        "results": results,
    }


COMPARED = line(
    [
        {
            "streams": streams,
            "contenders": {
                "windrose": {"output_tok_s": figure(60.0 * streams), "decode_tok_s": None},
                "a & b": {"output_tok_s": figure(40.0 * streams), "decode_tok_s": None},
            },
            "ratio": {"a & b": {"output_tok_s": 1.5}},
        }
        for streams in (1, 2)
    ]
    + [
        {
            "prefill_tokens": 1024,
            "contenders": {
                "windrose": {"prefill_tok_s": figure(3000.0)},
                "a & b": {"prefill_tok_s": figure(1000.0)},
            },
            "ratio": {},
        }
    ]
)
OFFLINE = line(
    [
        {
            "streams": 8,
            "read_gb_s": figure(40.0),
            "windrose": {"output_tok_s": figure(160.0)},
            "transformers": {"output_tok_s": figure(80.0)},
            "ratio": {"output_tok_s": 2.0},
        }
    ],
    "engine",
)


def drawn(tmp_path: Path, saved: list[dict[str, Any]], *flags: str) -> ElementTree.Element:
    result, picture = tmp_path / "result.json", tmp_path / "picture.svg"
    result.write_text("".join(json.dumps(one) + "\n" for one in saved))
    assert main(["figure", str(result), "-o", str(picture), *flags]) == 0
    return ElementTree.fromstring(picture.read_text())


def bars(svg: ElementTree.Element) -> list[tuple[str, float, str]]:
    """Name, height and colour of each bar from left to right."""
    return [
        (rect[0].text or "", float(rect.attrib["height"]), rect.attrib["fill"])
        for rect in svg.iter(f"{SVG}rect")
        if len(rect)
    ]


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def test_bars_are_as_high_as_their_figures(tmp_path: Path) -> None:
    svg = drawn(tmp_path, [COMPARED])
    found = bars(svg)
    assert [name for name, _, _ in found] == ["windrose", "a & b"] * 2
    heights = [height for _, height, _ in found]
    assert [height / heights[0] for height in heights] == pytest.approx(
        [1, 2 / 3, 2, 4 / 3], abs=0.01
    )
    assert [colour for _, _, colour in found] == [COLOURS[0], COLOURS[1]] * 2
    said = texts(svg)
    assert said[0] == "output tokens/s, mid <1>"
    assert {"1 stream", "2 streams", "60", "40", "120", "80", "windrose", "a & b"} <= set(said)
    assert "prompt of 1024" not in said
    assert said[-1].startswith("Some CPU, 2 cores, 2026-03-04")


def test_a_prompt_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    svg = drawn(tmp_path, [COMPARED], "--measure", "prefill_tok_s")
    assert [name for name, _, _ in bars(svg)] == ["windrose", "a & b"]
    assert "prompt of 1024" in texts(svg)


def test_of_several_runs_in_a_file_the_last_is_drawn_or_the_one_that_is_named(
    tmp_path: Path,
) -> None:
    saved = [OFFLINE, COMPARED]
    assert len(bars(drawn(tmp_path, saved))) == 4
    svg = drawn(tmp_path, saved, "--run", "1")
    assert [name for name, _, _ in bars(svg)] == ["windrose", "transformers"]


def test_the_same_result_is_the_same_picture(tmp_path: Path) -> None:
    first = ElementTree.tostring(drawn(tmp_path, [COMPARED]))
    assert ElementTree.tostring(drawn(tmp_path, [COMPARED])) == first


def test_whiskers_reach_from_the_least_to_the_most() -> None:
    svg = ElementTree.fromstring(bar_chart("t", "n", {"g": [Bar("a", 50.0, 25.0, 100.0)]}))
    [rect] = [rect for rect in svg.iter(f"{SVG}rect") if len(rect)]
    base = float(rect.attrib["y"]) + float(rect.attrib["height"])
    [whisker] = [path for path in svg.iter(f"{SVG}path") if "V" in path.attrib["d"]]
    low, high = (float(part) for part in whisker.attrib["d"].split()[1].split("V"))
    unit = float(rect.attrib["height"]) / 50
    assert (base - low, base - high) == pytest.approx((25 * unit, 100 * unit), abs=0.2)


def test_everything_lies_within_the_picture() -> None:
    many = {f"{n} streams": [Bar(f"server {i}", 5.0, 4.0, 9.9) for i in range(5)] for n in range(4)}
    svg = ElementTree.fromstring(bar_chart("t", "n", many))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for rect in svg.iter(f"{SVG}rect"):
        assert float(rect.attrib["x"]) >= 0
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib["y"]) >= 0
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height
    assert len({rect.attrib["fill"] for rect in svg.iter(f"{SVG}rect")}) == 5


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
@pytest.mark.parametrize(("colour", "least"), [(INK, 4.3), *((one, 3.0) for one in COLOURS)])
def test_it_can_be_read_on_white_and_dark_pages(page: str, colour: str, least: float) -> None:
    light, dark = sorted((luminance(page), luminance(colour)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= least  # WCAG asks for 3 of shapes


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.3, 0.4), (1, 1), (1.01, 2), (161, 200), (5500, 6000), (9.1, 10)]
)
def test_the_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert round_up(value) == pytest.approx(top)


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("", [], "holds 0 results"),
        ("no json", [], "holds no saved result"),
        ("[1]", [], "holds no saved result"),
        ('{"results": []}', [], "config"),
        (json.dumps(OFFLINE), ["--run", "2"], "holds 1 results, and no number 2"),
        (json.dumps(OFFLINE), ["--measure", "itl_ms"], "no itl_ms"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    content: str,
    flags: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = tmp_path / "result.json"
    result.write_text(content)
    assert main(["figure", str(result), "-o", str(tmp_path / "p.svg"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p.svg").exists()


def test_what_a_result_says_of_the_machine_is_no_server() -> None:
    assert [bar.name for bar in bars_of(OFFLINE, "output_tok_s")["8 streams"]] == [
        "windrose", "transformers",
    ]  # fmt: skip
