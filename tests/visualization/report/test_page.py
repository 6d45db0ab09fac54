"""The page is one sound file that trusts no name, and can be used without seeing it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cellseg_d2.visualization.report import write_report
from cellseg_d2.visualization.report.page import render_report
from cellseg_d2.visualization.report.sources import RunSources, read_run

from .browser import Page
from .runs import CLASSES, HOSTILE_CLASS, HOSTILE_IMAGE, make_run, shown_cells


@pytest.fixture(scope="module")
def parsed(page: str) -> Page:
    return Page(page)


def test_elements_are_nested_as_they_should(parsed: Page) -> None:
    assert parsed.faults == []
    ids = Counter(own["id"] for _, own, _ in parsed.elements if "id" in own)
    assert max(ids.values()) == 1
    targets = {
        value.removeprefix("#")
        for _, own, _ in parsed.elements
        for key, value in own.items()
        if key in ("for", "aria-labelledby", "aria-describedby")
        or (key == "href" and value.startswith("#"))
    }
    assert len(targets) > 10 and targets <= ids.keys()


def test_nothing_is_fetched(page: str, parsed: Page) -> None:
    for tag, own, _ in parsed.elements:
        assert not {"src", "srcset", "action", "data"} & own.keys(), tag
        assert tag not in ("link", "iframe", "object", "img", "base")
        assert own.get("href", "#").startswith(("#", "data:image/jpeg;base64,"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_names_are_text(page: str, parsed: Page) -> None:
    assert HOSTILE_CLASS not in page and HOSTILE_IMAGE not in page
    scripts = [own for tag, own, _ in parsed.elements if tag == "script"]
    assert [own.get("type") for own in scripts] == ["application/json", None]
    assert parsed.find("img") == []
    assert HOSTILE_CLASS in {own["text"] for own in parsed.find("th", scope="row")}
    assert any(HOSTILE_IMAGE in own["text"] for own in parsed.find("h3"))
    assert any("</script><b>.yaml" in own["text"] for own in parsed.find("dd"))


def test_the_pages_own_script_alone_may_run(page: str, parsed: Page) -> None:
    (policy,) = (m["content"] for m in parsed.find("meta") if m.get("http-equiv"))
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_everything_has_a_name(parsed: Page) -> None:
    labelled = {own.get("for") for own in parsed.find("label")}
    for own in parsed.find("input"):
        # Checkboxes stand within their labels.
        assert own["type"] == "checkbox" or own["id"] in labelled
    for own in parsed.find("button"):
        assert own["aria-label"]
    for own in parsed.find("svg"):
        assert (own.get("role") == "img" and own["aria-label"]) or "swatch" in own["class"]
    for _, own, _ in parsed.elements:
        assert own.get("role") != "region" or own["aria-label"]
    assert parsed.find("html", lang="en")
    assert parsed.find("meta", name="viewport")


def test_all_cells_of_the_chosen_images_are_there(run: RunSources, parsed: Page) -> None:
    ranks = [own["text"] for own in parsed.find("span", class_="rank")]
    assert ranks == ["worst 1", "worst 2", "best 1", "best 2"]
    names = {own["text"] for own in parsed.find("h3") if "id" in own}
    chosen = [row["image_id"] for row in run.details["images"] if row["name"] in names]
    assert len(chosen) == 4
    expected = Counter(
        (p["category_id"], p["score"]) for image_id in chosen for p in shown_cells(run)[image_id]
    )
    paths = [own for own in parsed.find("path") if "data-match" in own]
    assert Counter((int(p["data-class"]), float(p["data-score"])) for p in paths) == expected
    truth = [own for own in parsed.find("path") if "data-class" in own and "data-match" not in own]
    assert len(truth) == sum(len(run.dicts[image_id]["annotations"]) for image_id in chosen)
    assert {p["data-match"] for p in paths} == {"TP", "FP"}


def test_tallies_are_of_all_images(run: RunSources, page: str) -> None:
    tallies = json.loads(re.search(r'id="tallies">(.*?)</script>', page)[1])
    total = np.sum(tallies["tp"]) + np.sum(tallies["fp"])
    assert total == sum(map(len, shown_cells(run).values()))
    assert sum(tallies["gt"]) == sum(len(item["annotations"]) for item in run.dicts.values())
    assert len(tallies["gt"]) == len(CLASSES)


def test_the_page_stands_where_it_was_asked_for(run: RunSources, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(run, path, limit=1)
    assert path.read_text("utf-8") == render_report(run, limit=1)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_without_the_panoptic_task_the_page_says_how_to_get_it(
    tmp_path: Path, repository: Path
) -> None:
    run = read_run(make_run(tmp_path, repository, panoptic=False))
    parsed = Page(render_report(run, limit=2))
    assert parsed.faults == []
    assert any("TEST.PANOPTIC.ENABLED True" in own["text"] for own in parsed.find("code"))
