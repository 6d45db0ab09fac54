"""Classes and scores are switched in the page itself; in Chromium, skipped where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from cellseg_d2.visualization.report.sources import RunSources

from .browser import Page, render
from .runs import HOSTILE_CLASS, STEP_SCORES, shown_cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, "utf-8")
    return path


@pytest.fixture(scope="module")
def opened(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Page]:
    """Open the page at an address, at each once."""
    return functools.cache(
        lambda address="": render(file, tmp_path_factory.mktemp("browser"), address)
    )


def hidden(page: Page, threshold: float, off: set[int] = frozenset()) -> None:
    """Check that those predictions are hidden, and those alone, that should be."""
    paths = [own for own in page.find("path") if "data-match" in own]
    assert len(paths) > 20
    for own in paths:
        expected = float(own["data-score"]) < threshold or int(own["data-class"]) in off
        assert ("hidden" in (own.get("class") or "").split()) == expected


def row(page: Page, name: str) -> dict[str, str]:
    """Return a row of the live table; the cells of a row follow it."""
    start = next(i for i, (_, own, _) in enumerate(page.elements) if own.get("data-row") == name)
    cells = [(own, text) for tag, own, text in page.elements[start : start + 9] if tag == "td"]
    return {own["data-cell"]: "".join(text) for own, text in cells}


def test_the_page_opens_at_the_evaluations_threshold(opened) -> None:
    page = opened()
    hidden(page, 0.5)
    assert page.find("output")[0]["text"] == "0.50"


def test_the_address_sets_threshold_and_classes(opened, run: RunSources) -> None:
    page = opened("#threshold=.9&off=0,2&truth=1")
    hidden(page, 0.9, {0, 2})
    assert "with-outlines" in page.find("body")[0]["class"]
    shown = sum(
        p["score"] >= 0.9 and p["category_id"] in (1, 3)
        for own in shown_cells(run).values()
        for p in own
    )
    cells = sum(
        a["category_id"] in (1, 3) for item in run.dicts.values() for a in item["annotations"]
    )
    own = row(page, "all")
    assert int(own["shown"]) == shown == int(own["tp"]) + int(own["fp"])
    assert int(own["missed"]) == cells - int(own["tp"])


@pytest.mark.parametrize("threshold", STEP_SCORES)
def test_counts_are_those_of_the_paths(opened, run: RunSources, threshold: float) -> None:
    page = opened(f"#threshold={threshold}")
    hidden(page, threshold)
    every = [p["score"] for own in shown_cells(run).values() for p in own]
    assert threshold in every
    assert int(row(page, "all")["shown"]) == sum(score >= threshold for score in every)
    paths = [own for own in page.find("path") if "data-match" in own]
    shown = [own for own in paths if "hidden" not in (own.get("class") or "")]
    right = sum(own["data-match"] == "TP" for own in shown)
    truth = [own for own in page.find("path") if "data-class" in own and "data-match" not in own]
    lost = sum("lost" in (own.get("class") or "") for own in truth)
    assert lost == len(truth) - right  # each TP finds one
    summary = page.find("p", id="summary")[0]["text"]
    counts = f"{len(shown)} shown: {right} TP, {len(shown) - right} FP; {lost} missed"
    assert summary == f"On these 4 images: {counts}"


def test_a_link_to_a_section_changes_nothing(opened) -> None:
    hidden(opened("#scores"), 0.5)


@pytest.mark.parametrize("address", ["#threshold=x&off=%3Cb%3E", "#threshold=7&off=9"])
def test_an_address_that_means_nothing_does_no_harm(opened, address: str) -> None:
    hidden(opened(address), 1.0 if "7" in address else 0.5)


def test_names_do_not_become_elements(opened) -> None:
    page = opened()
    assert page.find("img") == []
    assert len(page.find("script")) == 2
    assert HOSTILE_CLASS in {own["text"] for own in page.find("span")}


def with_probe(file: Path, folder: Path, script: str) -> Path:
    """Put a script into a copy of the page, and take away the policy that forbids it."""
    html = file.read_text("utf-8").replace("Content-Security-Policy", "x-none")
    path = folder / "probe.html"
    path.write_text(html.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    return path


def test_the_page_is_never_wider_than_the_window(file: Path, tmp_path: Path) -> None:
    script = """
    document.querySelectorAll("details").forEach((element) => { element.open = true; });
    parent.postMessage([innerWidth, document.documentElement.scrollWidth].join(), "*");
    """
    probe = with_probe(file, tmp_path, script)
    # A browser's window is at least 500 pixels wide, a frame in it is not.
    around = tmp_path / "around.html"
    around.write_text(
        "<script>onmessage = (event) => { document.body.dataset.wide += `${event.data} `; };"
        '</script><body data-wide="">'
        + "".join(f'<iframe src="{probe.name}" style="width: {w}px"></iframe>' for w in (390, 1400))
    )
    page = render(around, tmp_path / "b")
    widths = [
        tuple(map(int, each.split(","))) for each in page.find("body")[0]["data-wide"].split()
    ]
    assert sorted(window for window, _ in widths) == [390, 1400]
    assert all(content <= window for window, content in widths)


def test_keys_and_controls_work(file: Path, tmp_path: Path) -> None:
    script = """
    const [truth, predicted] = document.querySelectorAll(".view");
    const results = [];
    const press = (key) => {
      const init = { key, bubbles: true, cancelable: true };
      predicted.dispatchEvent(new KeyboardEvent("keydown", init));
      results.push(truth.getAttribute("viewBox") === predicted.getAttribute("viewBox"));
      return predicted.getAttribute("viewBox").split(" ").map(Number);
    };
    const all = press("0"), still = press("ArrowRight");
    results.push(still.join() === all.join());
    const near = press("+");
    results.push(Math.abs(near[2] - all[2] / 1.5) < 1e-6, near[0] > 0);
    results.push(press("ArrowRight")[0] > near[0]);
    for (let i = 0; i < 40; i += 1) press("ArrowRight");
    const end = press("ArrowRight");
    results.push(Math.abs(end[0] + end[2] - all[2]) < 1e-6);
    results.push(press("0").join() === all.join());
    document.querySelector("[data-zoom=in]").click();
    results.push(predicted.classList.contains("zoomed"));
    const box = document.querySelector("[name=class]");
    box.click();
    const slider = document.getElementById("threshold");
    slider.value = "0.75";
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    slider.dispatchEvent(new Event("change", { bubbles: true }));
    document.body.dataset.results = results.join();
    document.body.dataset.address = location.hash;
    """
    page = render(with_probe(file, tmp_path, script), tmp_path / "b")
    body = page.find("body")[0]
    assert set(body["data-results"].split(",")) == {"true"}
    assert body["data-address"] == "#threshold=0.75&off=0"
    hidden(page, 0.75, {0})
