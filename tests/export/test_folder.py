"""Oracle: a run without interruption, over the same images in one go."""

from __future__ import annotations

import gc
import logging
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.structures import Instances

from cellseg_d2 import CellDataError, load_config
from cellseg_d2.export.folder import predict_folder
from cellseg_d2.export.image_outputs import ImageOutputs, OutputOptions
from cellseg_d2.export.parts import Parts
from cellseg_d2.export.submission import instances_to_entries, write_submission

from .answers import DiscPredictor, save_images

FILES = OutputOptions(labels=True, geojson=True, csv=True)


class Killed(BaseException):
    """What no part of the package could catch and go on from."""


def predict(
    dicts: list[dict], output: Path, predictor: DiscPredictor, options: OutputOptions = FILES
) -> tuple[Path, Path]:
    parts = Parts(output, "run")
    cfg = load_config(options=["MODEL.MASK_ON", "True"])
    outputs = ImageOutputs(output, cfg, options, parts)
    return predict_folder(dicts, lambda: predictor, outputs, parts, output)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_submission_holds_all_images_in_order(tmp_path: Path) -> None:
    dicts = save_images(tmp_path / "images", 3)
    written = predict(dicts, tmp_path / "out", DiscPredictor())
    answers = (
        instances_to_entries(instances, item["image_id"])
        for item in dicts
        for instances in DiscPredictor().stream(item["file_name"])
    )
    expected = write_submission(answers, tmp_path / "expected")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in expected]
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.parametrize("when", ["before", "between its parts"])
def test_an_interrupted_run_goes_on(tmp_path: Path, when: str) -> None:
    dicts = save_images(tmp_path / "images", 4)
    predict(dicts, tmp_path / "expected", DiscPredictor())

    class Interrupted(DiscPredictor):
        def stream(self, path: str) -> Iterator[Instances]:
            stream = super().stream(path)
            if len(self.seen) == 2:
                if when != "before":
                    yield next(stream)
                raise Killed
            yield from stream

    out = tmp_path / "out"
    with pytest.raises(Killed):
        predict(dicts, out, Interrupted())
    assert not list(out.glob("test-results*"))
    again = DiscPredictor()
    predict(dicts, out, again)
    assert again.seen == ["tile_0002", "tile_0003"]
    assert contents(out) == contents(tmp_path / "expected")


def test_a_kill_while_the_submission_is_written_costs_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dicts = save_images(tmp_path / "images", 3)
    predict(dicts, tmp_path / "expected", DiscPredictor())
    out, entries, calls = tmp_path / "out", Parts.entries, []

    def killed(self: Parts, item: dict) -> Iterator[dict]:
        calls.append(item)
        if len(calls) == 2:
            raise Killed
        return entries(self, item)

    monkeypatch.setattr(Parts, "entries", killed)
    with pytest.raises(Killed):
        predict(dicts, out, DiscPredictor())
    monkeypatch.setattr(Parts, "entries", entries)
    again = DiscPredictor()
    predict(dicts, out, again)
    assert again.seen == []
    assert contents(out) == contents(tmp_path / "expected")


def test_a_finished_run_begins_anew(tmp_path: Path) -> None:
    dicts = save_images(tmp_path / "images", 2)
    predict(dicts, tmp_path / "out", DiscPredictor())
    again = DiscPredictor()
    predict(dicts, tmp_path / "out", again)
    assert len(again.seen) == 2


def test_a_former_submission_goes_before_its_images_are_replaced(tmp_path: Path) -> None:
    dicts, out = save_images(tmp_path / "images", 2), tmp_path / "out"
    predict(dicts, out, DiscPredictor())
    assert len(list(out.glob("test-results.*"))) == 2
    bad = Path(dicts[1]["file_name"])
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(CellDataError, match=bad.name):
        predict(dicts, out, DiscPredictor())
    assert not list(out.glob("test-results.*"))


def test_outputs_of_other_images_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    dicts, out = save_images(tmp_path / "images", 3), tmp_path / "out"
    predict(dicts, out, DiscPredictor())
    before = contents(out)
    later = DiscPredictor()
    with pytest.raises(CellDataError, match=r"out/labels: found 1 of .*\(tile_0002\)"):
        predict(dicts[:2], out, later)
    # The label TIFFs are asked for again, the others are not.
    with pytest.raises(CellDataError, match=r"out/geojson: found 3 of .*\(tile_0000.geojson, "):
        predict(dicts, out, later, OutputOptions(labels=True))
    assert later.seen == [] and contents(out) == before
    (out / "geojson" / ".DS_Store").touch()
    (out / "geojson" / "tile_0009.geojson.part").touch()
    predict(dicts, out, later)
    assert len(later.seen) == 3


def test_images_that_cannot_be_read_are_named_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dicts = save_images(tmp_path / "images", 5)
    predict(dicts, tmp_path / "expected", DiscPredictor())
    bad = [Path(dicts[index]["file_name"]) for index in (1, 3)]
    sound = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-100])
    out, first = tmp_path / "out", DiscPredictor()
    with caplog.at_level(logging.ERROR), pytest.raises(CellDataError) as raised:
        predict(dicts, out, first)
    assert all(path.name in str(raised.value) for path in bad)
    assert "2 of 5 images cannot be read" in caplog.text
    assert not list(out.glob("test-results*"))
    assert first.seen == ["tile_0000", "tile_0002", "tile_0004"]

    for path, data in zip(bad, sound, strict=True):
        path.write_bytes(data)
    again = DiscPredictor()
    predict(dicts, out, again)
    assert again.seen == ["tile_0001", "tile_0003"]
    assert contents(out) == contents(tmp_path / "expected")


@pytest.mark.slow
def test_three_hundred_images_need_the_memory_of_one(tmp_path: Path) -> None:
    dicts = save_images(tmp_path / "images", 300, size=(24, 24))
    alive: set[int] = set()
    held: list[int] = []

    class Watched(DiscPredictor):
        def stream(self, path: str) -> Iterator[Instances]:
            for instances in super().stream(path):
                alive.add(id(instances))
                weakref.finalize(instances, alive.discard, id(instances))
                assert len(alive) <= 3, "answers pile up"
                yield instances
            if len(self.seen) in (50, 300):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    predict(dicts, tmp_path / "out", Watched(), OutputOptions())
    tracemalloc.stop()
    # The least that could pile up, the text of 250 images' entries, is 400 KB.
    assert (tmp_path / "out" / "test-results.json").stat().st_size > 400_000
    assert held[1] - held[0] < 100_000
