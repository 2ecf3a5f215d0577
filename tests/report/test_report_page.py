"""A page shows all of its runs, is whole by itself, and opens in a browser without a complaint."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from chromium import Page, chromium, missing

from longrope.exceptions import SettingsError
from longrope.report.content import shown
from longrope.report.palette import DARK, LIGHT
from longrope.report.write import write_report


class Parsed(HTMLParser):
    """What is in a page: its tags with their attributes, its ids, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def every_run(search_run: Path, perplexity_run: Path, passkey_run: Path, finetune_run: Path) -> list[Path]:
    return [search_run, perplexity_run, passkey_run, finetune_run]


@pytest.fixture(scope="module")
def report(every_run: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of all of them."""
    folder = tmp_path_factory.mktemp("reports")
    write_report([*every_run, every_run[1]], folder)
    return folder


def test_a_page_is_whole_by_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    parsed = Parsed(page)
    ids = Counter(attributes["id"] for _, attributes in parsed.tags if "id" in attributes)
    assert max(ids.values()) == 1
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "img", "iframe", "object", "embed"), tag
        for name in ("src", "href", "xlink:href", "srcset"):
            target = attributes.get(name)
            assert target is None or target == "data:," or (target[0] == "#" and target[1:] in ids), target
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {f"#{name}" for name in ids}
    assert "http" not in re.sub(r"content=\"[^\"]*\"|http-equiv", "", page)


def test_figures_follow_the_colours_of_the_page_and_say_what_they_show(report: Path) -> None:
    parsed = Parsed((report / "report.html").read_text())
    drawings = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(drawings) == len([tag for tag, _ in parsed.tags if tag == "figure"]) >= 20
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert re.search(r"\d", attributes["aria-label"] or "")
    page = (report / "report.html").read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"(fill|stroke): ?#", svg)
    used = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert used <= set(re.findall(r"--([\w-]+):", page))


def test_plots_lie_beside_the_page(report: Path) -> None:
    page = (report / "report.html").read_text()
    named = re.findall(r"plots/([\w-]+)\.png and \.svg", page)
    assert len(named) == len(set(named))
    files = {path.name for path in (report / "plots").iterdir()}
    assert files == {f"{name}{suffix}" for name in named for suffix in (".png", ".svg")}
    assert {"search-factors.png", "perplexity-per-byte.svg", "perplexity-2-per-byte.svg"} <= files


def test_equal_runs_give_equal_reports(perplexity_run: Path, report: Path, tmp_path: Path) -> None:
    write_report([perplexity_run], tmp_path)
    files = list((tmp_path / "plots").iterdir())
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (report / "plots" / path.name).read_bytes()
    first, second = ((folder / "report.html").read_text() for folder in (report, tmp_path))
    drawn = re.findall(r"<svg.*?</svg>", second, re.DOTALL)
    assert len(drawn) == 3
    assert all(svg in first for svg in drawn)


def test_numbers_are_those_of_the_run(perplexity_run: Path, report: Path) -> None:
    text = Parsed((report / "report.html").read_text()).text
    for name in ("perplexity", "per_byte", "low", "high", "error"):
        for value in pd.read_csv(perplexity_run / "results.csv")[name]:
            assert shown(float(value)) in text
    record = json.loads((perplexity_run / "results.json").read_text())
    for value in (*record["versions"].values(), *record["machine"].values(), record["samples"][0]):
        assert str(value) in text


def test_what_failed_is_said_and_escaped(search_run: Path, report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "1 of the evaluations failed" in page
    assert "out of &lt;b&gt;memory&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "books/&lt;novels&gt;" in page


def test_names_in_files_cannot_become_markup(perplexity_run: Path, tmp_path: Path) -> None:
    bad = "</title></svg><script>alert('x')</script>&amp;"
    folder = tmp_path / "run"
    shutil.copytree(perplexity_run, folder)
    record = json.loads((folder / "results.json").read_text().replace('"pi"', json.dumps(bad)))
    record["model"]["name"] = bad
    (folder / "results.json").write_text(json.dumps(record))
    records = pd.read_csv(folder / "records.csv")
    records["method"] = records["method"].replace("pi", bad)
    records.to_csv(folder / "records.csv", index=False)
    page = write_report([folder]).page.read_text()
    parsed = Parsed(page)
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    assert parsed.text.count(bad) >= 4


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra_the_message_names_it(
    package: str, perplexity_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"needs {package}, .*pip install longrope\[report\]"):
        write_report([perplexity_run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# In the browser. Each of these is asked of a page that was loaded anew.

SIDEWAYS = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Figures whose drawing is nowhere, and texts in them or beside them that are too small to read.
UNSEEN = """
return [...document.querySelectorAll('figure')].filter(figure => {
  const box = figure.querySelector('svg').getBoundingClientRect();
  return box.width < 250 || box.height < 90 || box.right > innerWidth;
}).map(figure => figure.id)
"""
TINY = """
const small = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!own || element.closest('title, style')) continue;
  const svg = element.closest('svg');
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = parseFloat(getComputedStyle(element).fontSize) * scale;
  if (size < 9) small.push([element.textContent.trim().slice(0, 30), size]);
}
return small
"""
# Words that the edge of their figure cuts off, or that lie on each other.
CLASHES = """
const found = [];
for (const svg of document.querySelectorAll('figure svg')) {
  const frame = svg.getBoundingClientRect();
  const words = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  words.forEach(([said, box], index) => {
    if (box.left < frame.left - 2 || box.right > frame.right + 2) found.push(said + ' is cut off');
    for (const [other, its] of words.slice(index + 1)) {
      const width = Math.min(box.right, its.right) - Math.max(box.left, its.left);
      const height = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
      if (width > 2 && height > 4) found.push(said + ' lies on ' + other);
    }
  });
}
return found
"""
# Text and the background that it stands on, as computed: [r, g, b] each.
COLOURS = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const pairs = [];
for (const element of document.querySelectorAll('h1, h2, h3, p, dt, dd, th, td, summary, a, pre, li, figure text')) {
  if (!element.textContent.trim()) continue;
  const style = getComputedStyle(element);
  const colour = rgb(element instanceof SVGElement ? style.fill : style.color);
  let below = element, ground = [0, 0, 0, 0];
  while (below && ground.length === 4 && ground[3] === 0) {
    ground = rgb(getComputedStyle(below).backgroundColor);
    below = below.parentElement;
  }
  pairs.push([element.textContent.trim().slice(0, 30), colour, ground]);
}
return pairs
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Chromium, with nothing logged yet."""
    absent = missing()
    if absent is not None:
        pytest.skip(f"not installed: {absent} (Debian's packages chromium and chromium-driver)")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(browser: Page, report: Path, width: int, scheme: str) -> None:
    page = report / "report.html"
    browser.open(page, width=width, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("return document.querySelectorAll('figure svg').length") >= 20
    assert browser.run(SIDEWAYS) == 0
    assert browser.run(UNSEEN) == []
    assert browser.run(TINY) == []
    assert browser.run(CLASHES) == []
    pairs = browser.run(COLOURS)
    assert len(pairs) > 500
    faint = [(said, contrast(colour, ground)) for said, colour, ground in pairs if contrast(colour, ground) < 4.5]
    assert faint == []
    dark = luminance(browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
    assert dark < 0.05 if scheme == "dark" else dark > 0.9
    assert browser.logged("browser") == []
    assert browser.requests() == [page.resolve().as_uri()]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_words_in_the_fullest_cell_and_lines_on_the_page_can_be_seen(scheme: dict[str, str]) -> None:
    colours = {role: [int(colour[place : place + 2], 16) for place in (1, 3, 5)] for role, colour in scheme.items()}
    assert contrast(colours["ink"], colours["heat"]) > 4.5
    for role, colour in colours.items():
        if role not in ("paper", "grid", "heat"):
            assert contrast(colour, colours["paper"]) > 3, role
    assert len(set(scheme.values())) == len(scheme)


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [value / 255 for value in colour[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Contrast ratio as WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
