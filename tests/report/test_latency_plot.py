"""The plot is one valid SVG that fetches nothing, and what it draws is where the numbers say."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from octavo.report.bench_text import sparks
from octavo.report.latency_plot import HEIGHT, WIDTH, latency_plot

SVG = "{http://www.w3.org/2000/svg}"
JUDGED = {"word": "slower", "ratio": 2.0, "low": 1.9, "high": 2.1, "cause": ""}


def windows(n: int = 20) -> list[dict[str, Any]]:
    middles = [10.0 if i < n // 2 else 20.0 for i in range(n)]
    return [
        {"start_s": 5.0 * i, "end_s": 5.0 * (i + 1), "p10": 0.9 * p50, "p50": p50, "p90": 1.1 * p50}
        for i, p50 in enumerate(middles)
    ]


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in str(element.get("points")).split())]


def test_the_line_is_where_the_numbers_are() -> None:
    root = ElementTree.fromstring(latency_plot("a <file> & more", windows(), JUDGED))
    line = points(root.findall(f"{SVG}polyline")[0])
    assert len(line) == 20
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    zero = max(float(str(item.get("y1"))) for item in root.findall(f"{SVG}line"))
    assert abs((zero - line[-1][1]) / (zero - line[0][1]) - 2) < 0.02, "twice the time is twice as high"
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line + points(root.findall(f"{SVG}polygon")[0]))
    texts = " ".join(str(item.text) for item in root.iter(f"{SVG}text"))
    for word in ("a <file> & more", "first quarter 10 ms", "last quarter 20 ms", "slower", "2.000 [1.900, 2.100]"):
        assert word in texts


def test_nothing_is_fetched_or_run() -> None:
    text = latency_plot("x", windows(), JUDGED).replace("http://www.w3.org/2000/svg", "")
    assert not any(word in text for word in ("http", "href", "<script", "url(", "@import"))


def test_a_short_run_is_drawn_without_quarters() -> None:
    short = {"word": "too short", "ratio": None, "low": None, "high": None, "cause": "3 windows"}
    for judged in (short, None):
        text = latency_plot("x", windows(1), judged)
        assert ElementTree.fromstring(text).tag == f"{SVG}svg"
        assert "quarter 1" not in text


def test_sparks_are_as_high_as_their_values() -> None:
    assert sparks([1.0, 2.0, 4.0]) == "▃▅█"
    assert len(sparks([1.0] * 1000)) == 60
    assert sparks([0.0]) == "▁"
