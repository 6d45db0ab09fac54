"""Oracles: files whose one fault is known, and pycocotools for masks and boxes."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile

from cellseg_d2.errors import CellDataError
from cellseg_d2.export import submission_check, submission_file
from cellseg_d2.export.submission_check import SubmissionReport, check_submission

HEIGHT, WIDTH = 40, 60
EMPTY = mask_util.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))["counts"].decode()


def entry(
    box: tuple[int, int, int, int] = (10, 5, 20, 15), image_id: int = 1, **changes: Any
) -> dict[str, Any]:
    """A sound prediction of a filled rectangle (x0, y0, x1, y1)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    rle = mask_util.encode(mask)
    sound = {
        "image_id": image_id,
        "bbox": mask_util.toBbox(rle).tolist(),
        "score": 0.5,
        "category_id": 2,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
    }
    return {**sound, **changes}


def with_mask(**changes: Any) -> dict[str, Any]:
    changed = entry()
    changed["segmentation"].update(changes)
    return changed


def without(*path: str) -> dict[str, Any]:
    changed = entry()
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def check(tmp_path: Path, content: Any, **options: Any) -> SubmissionReport:
    path = tmp_path / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return check_submission(path, **options)


def faults_of(report: SubmissionReport) -> list[tuple[str, str]]:
    return [(fault.field, fault.message) for fault in report.faults]


@pytest.fixture
def id_map(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    entries = [
        {"file_name": f"{name}.tif", "id": number, "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate("abc", start=1)
    ]
    path.write_text(json.dumps(entries))
    return path


def test_a_sound_file_has_its_figures_and_no_fault(tmp_path: Path, id_map: Path) -> None:
    entries = [entry(score=0.05, category_id=4), entry((0, 0, 60, 40), 2), entry(image_id=3)]
    report = check(tmp_path, entries, id_map=id_map, require_all=True)
    assert not report.faults and not report.warnings
    assert (report.total, report.image_ids, report.category_ids) == (3, [1, 2, 3], [2, 4])
    assert report.score_range == (0.05, 0.5)
    assert list(report.lines()) == [
        "Total predictions: 3",
        "Unique image IDs: 3",
        "Unique category IDs: [2, 4]",
        "Score range: [0.050, 0.500]",
        "0 faults found",
    ]


CASES = [
    ("is missing", without("image_id"), "image_id"),
    ("is missing", without("bbox"), "bbox"),
    ("is missing", without("score"), "score"),
    ("is missing", without("category_id"), "category_id"),
    ("is missing", without("segmentation"), "segmentation"),
    ("is missing", without("segmentation", "size"), "segmentation.size"),
    ("is missing", without("segmentation", "counts"), "segmentation.counts"),
    ("is not a field", entry(area=5), "'area'"),
    ("is not a field", with_mask(iscrowd=0), "segmentation.'iscrowd'"),
    ("is not an object", [1], ""),
    ("null is not an object", None, ""),
    ("'1' is not an integer", entry(image_id="1"), "image_id"),
    ("true is not an integer", entry(image_id=True), "image_id"),
    ("1.0 is not an integer", entry(image_id=1.0), "image_id"),
    ("an integer of 30 digits is not", entry(image_id=10**29), "image_id"),
    ("-1 is negative", entry(image_id=-1), "image_id"),
    ("0 is not within 1 to 4", entry(category_id=0), "category_id"),
    ("5 is not within 1 to 4", entry(category_id=5), "category_id"),
    ("2.0 is not an integer", entry(category_id=2.0), "category_id"),
    ("false is not an integer", entry(category_id=False), "category_id"),
    ("'high' is not a finite", entry(score="high"), "score"),
    ("true is not a finite", entry(score=True), "score"),
    ("nan is not a finite", entry(score=float("nan")), "score"),
    ("inf is not a finite", entry(score=float("inf")), "score"),
    ("1.01 is not within 0 to 1", entry(score=1.01), "score"),
    ("-0.1 is not within 0 to 1", entry(score=-0.1), "score"),
    ("is not a list of four", entry(bbox=[10, 5, 10]), "bbox"),
    ("is not a list of four", entry(bbox=[10, 5, 10, 10, 1]), "bbox"),
    ("is not a list of four", entry(bbox=[10, 5, 10, "10"]), "bbox"),
    ("is not a list of four", entry(bbox=[10, 5, 10, None]), "bbox"),
    ("is not a list of four", entry(bbox=[True, 5, 10, 10]), "bbox"),
    ("is not a list of four", entry(bbox=[float("nan"), 5, 10, 10]), "bbox"),
    ("is not a list of four", entry(bbox={"x": 1}), "bbox"),
    ("no positive width", entry(bbox=[10, 5, 0, 10]), "bbox"),
    ("no positive width", entry(bbox=[10, 5, 10, -2]), "bbox"),
    ("does not hold the mask", entry(bbox=[30, 5, 10, 10]), "bbox"),
    ("does not hold the mask", entry(bbox=[12, 5, 10, 10]), "bbox"),
    ("does not hold the mask", entry(bbox=[10, 5, 8, 10]), "bbox"),
    ("far larger than the mask", entry(bbox=[0, 0, 60, 40]), "bbox"),
    ("it holds x0, y0, x1, y1 where", entry((30, 20, 40, 30), bbox=[30, 20, 40, 30]), "bbox"),
    ("a list of 1 is not an object; polygons", entry(segmentation=[[1, 2]]), "segmentation"),
    ("is not an object", entry(segmentation="abc"), "segmentation"),
    ("is not [height, width]", with_mask(size=[HEIGHT]), "segmentation.size"),
    ("is not [height, width]", with_mask(size=[HEIGHT, 60.0]), "segmentation.size"),
    ("is not [height, width]", with_mask(size=[True, WIDTH]), "segmentation.size"),
    ("is not [height, width]", with_mask(size=[0, WIDTH]), "segmentation.size"),
    ("more than 4294967295 pixels", with_mask(size=[10**6, 10**6]), "segmentation.size"),
    ("is not a string; compress", with_mask(counts=[3, 4]), "segmentation.counts"),
    ("is not a string", with_mask(counts=7), "segmentation.counts"),
    ("counts is empty", with_mask(counts=""), "segmentation.counts"),
    ("is not ASCII", with_mask(counts="é"), "segmentation.counts"),
    ("is not ASCII", with_mask(counts="\ud800"), "segmentation.counts"),
    ("outside '0' to 'o'", with_mask(counts="1~"), "segmentation.counts"),
    ("within a number", with_mask(counts="P"), "segmentation.counts"),
    ("cover 1 of the 40×60", with_mask(counts="1"), "segmentation.counts"),
    ("exceed the 40×60", with_mask(counts="oooo?" * 9), "segmentation.counts"),
    ("the mask has no pixel", with_mask(counts=EMPTY), "segmentation.counts"),
]


@pytest.mark.parametrize(("message", "bad", "field"), CASES, ids=range(len(CASES)))
def test_one_fault_is_listed_once(tmp_path: Path, message: str, bad: Any, field: str) -> None:
    report = check(tmp_path, [entry(), bad, entry((0, 0, 5, 5))])
    assert report.total == 3
    ((found_field, found_message),) = faults_of(report)
    assert found_field == field
    assert message in found_message
    assert report.faults[0].index == 1
    assert f"fault: prediction 1{', image' if report.faults[0].image_id else ''}" in "\n".join(
        report.lines()
    )


def test_every_fault_of_a_prediction_is_listed(tmp_path: Path) -> None:
    bad = entry(image_id="x", score=2, category_id=9, bbox=[0, 0, 1], more=1)
    bad["segmentation"] = {"size": "large", "counts": 3}
    report = check(tmp_path, [bad])
    assert sorted(field for field, _ in faults_of(report)) == [
        "'more'",
        "bbox",
        "category_id",
        "image_id",
        "score",
        "segmentation.counts",
        "segmentation.size",
    ]


def test_boxes_of_a_box_head_are_accepted(tmp_path: Path) -> None:
    # Up to a pixel of rounding inside the mask, and some pixels of slack outside.
    boxes = [[10.6, 5.4, 9.0, 9.0], [8.2, 3.1, 13.3, 13.9], [10, 5, 10, 10], [9, 4, 12, 12]]
    assert not check(tmp_path, [entry(bbox=box) for box in boxes]).faults


def test_loose_boxes_of_tiny_masks_are_accepted(tmp_path: Path) -> None:
    assert not check(tmp_path, [entry((10, 10, 11, 11), bbox=[8, 8, 5, 5])]).faults


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    assert not check(tmp_path, [entry(score=1, bbox=[10, 5, 10, 10])]).faults


def test_repeated_keys_are_a_fault(tmp_path: Path) -> None:
    text = json.dumps([entry()]).replace('"score"', '"score": 0.1, "score"')
    assert faults_of(check(tmp_path, text)) == [("'score'", "stands twice in one object")]


def test_repeated_masks_are_a_warning(tmp_path: Path) -> None:
    entries = [entry(), entry(image_id=2), entry(category_id=3), entry((1, 1, 5, 5))]
    report = check(tmp_path, entries)
    assert not report.faults
    assert report.warnings == ["1 predictions repeat the image and mask of an earlier one"]


def test_ids_and_sizes_are_checked_against_the_id_map(tmp_path: Path, id_map: Path) -> None:
    wrong_size = with_mask(size=[WIDTH, HEIGHT])
    wrong_size["image_id"] = 2
    del wrong_size["bbox"]
    report = check(tmp_path, [entry(image_id=9), wrong_size], id_map=id_map)
    assert faults_of(report) == [
        ("image_id", "9 is not the id of an image"),
        ("bbox", "is missing"),
        (
            "segmentation.size",
            "[60, 40] is not the image's [40, 60]; height and width are swapped",
        ),
    ]


def test_images_without_predictions(tmp_path: Path, id_map: Path) -> None:
    report = check(tmp_path, [entry(image_id=2)], id_map=id_map)
    assert not report.faults
    assert report.warnings == ["2 of 3 images have no predictions: ids 1, 3"]
    report = check(tmp_path, [entry(image_id=2)], id_map=id_map, require_all=True)
    assert not report.warnings
    assert [(fault.image_id, fault.message) for fault in report.faults] == [
        (1, "no predictions"),
        (3, "no predictions"),
    ]


def test_sizes_are_read_from_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "b.tif", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    tifffile.imwrite(folder / "a.tif", np.zeros((50, 50, 3), np.uint8))
    report = check(tmp_path, [entry(image_id=1), entry(image_id=2)], images=folder)
    assert [(fault.index, fault.image_id, fault.message) for fault in report.faults] == [
        (0, 1, "[40, 60] is not the image's [50, 50]")
    ]


def test_an_image_that_does_not_fit_the_id_map_is_a_fault(tmp_path: Path, id_map: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", np.zeros((50, 50, 3), np.uint8))
    report = check(tmp_path, [entry()], images=folder, id_map=id_map)
    ((_, message),) = faults_of(report)
    assert "a.tif" in message and "50×50" in message
    assert any("2 of 3 images are not in" in warning for warning in report.warnings)


def test_a_faulty_id_map_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[{}]")
    with pytest.raises(CellDataError, match="ids.json"):
        check(tmp_path, [entry()], id_map=tmp_path / "ids.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty (line 1, column 1)"),
        ("{}", "an object, not a list"),
        ("[" * 50_000, "nested too deeply"),
        ('[{"image_id": 1,}]', "line 1"),
        ("[\n\n  oops]", "Expecting value (line 3, column 3)"),
    ],
)
def test_broken_json_is_a_fault_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    ((_, found),) = faults_of(check(tmp_path, text))
    assert message in found


def test_a_cut_off_file_is_checked_up_to_the_cut(tmp_path: Path) -> None:
    text = json.dumps([entry(), entry(score=3), entry()])
    report = check(tmp_path, text[:-40])
    assert report.total == 2
    assert [field for field, _ in faults_of(report)] == ["score", ""]


def test_bytes_that_are_no_text_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_bytes(b'["\xff\xfe"]')
    assert "not UTF-8" in check_submission(path).faults[0].message


def test_a_file_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_file, "MAX_BYTES", 100)
    ((_, message),) = faults_of(check(tmp_path, [entry()]))
    assert "over the limit of 100" in message


def test_the_list_of_faults_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_check, "MAX_FAULTS", 10)
    report = check(tmp_path, [1] * 1000)
    assert len(report.faults) == 11 and report.total == 10
    assert "the rest is not checked" in report.faults[-1].message


class TestZip:
    @staticmethod
    def zipped(tmp_path: Path, **members: str) -> Path:
        path = tmp_path / "predictions.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(name.replace("__", "/"), text)
        return path

    def test_it_is_read_like_the_json(self, tmp_path: Path) -> None:
        path = self.zipped(tmp_path, **{"test-results.json": json.dumps([entry(), entry(score=2)])})
        report = check_submission(path)
        assert report.total == 2
        assert [(fault.index, fault.field) for fault in report.faults] == [(1, "score")]

    def test_it_is_recognized_without_its_suffix(self, tmp_path: Path) -> None:
        path = self.zipped(tmp_path, **{"test-results.json": json.dumps([entry()])})
        assert check_submission(path.rename(tmp_path / "predictions.json")).total == 1

    def test_another_name_is_a_fault_and_is_read(self, tmp_path: Path) -> None:
        report = check_submission(self.zipped(tmp_path, **{"my.json": json.dumps([entry()])}))
        assert report.total == 1
        assert faults_of(report) == [("", "the zip holds 'my.json', not test-results.json")]

    def test_other_files_are_a_warning(self, tmp_path: Path) -> None:
        text = json.dumps([entry()])
        report = check_submission(
            self.zipped(tmp_path, **{"test-results.json": text, "__MACOSX__x": "junk"})
        )
        assert not report.faults
        assert report.warnings == ["the zip holds 1 other files"]

    def test_without_json_it_is_a_fault(self, tmp_path: Path) -> None:
        ((_, message),) = faults_of(check_submission(self.zipped(tmp_path, readme="hello")))
        assert "no test-results.json" in message

    def test_damage_is_a_fault(self, tmp_path: Path) -> None:
        path = self.zipped(tmp_path, **{"test-results.json": json.dumps([entry()] * 50)})
        whole = path.read_bytes()
        for damaged in (b"", b"PK\x03\x04", whole[:100], whole[:60] + b"\0" * 40 + whole[100:]):
            path.write_bytes(damaged)
            assert any("damaged" in message for _, message in faults_of(check_submission(path)))

    def test_encryption_is_a_fault(self, tmp_path: Path) -> None:
        path = self.zipped(tmp_path, **{"test-results.json": json.dumps([entry()])})
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        ((_, message),) = faults_of(check_submission(path))
        assert "encrypted" in message

    def test_a_bomb_is_refused_before_it_is_unpacked(self, tmp_path: Path) -> None:
        path = self.zipped(tmp_path, **{"test-results.json": "[" + " " * (20 << 20) + "]"})
        ((_, message),) = faults_of(check_submission(path))
        assert "would unpack to 20971522" in message


def test_mutated_files_end_in_a_report(tmp_path: Path) -> None:
    """A short form of fuzzing: bytes of sound files are changed, cut out and inserted."""
    draw = random.Random(0)
    text = json.dumps([entry((x, x, x + 6, x + 9)) for x in range(8)]).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("test-results.json", text)
    faulty = 0
    for turn in range(400):
        data = bytearray(text if turn % 2 else archive.getvalue())
        for _ in range(draw.choice((1, 2, 10))):
            place = draw.randrange(len(data))
            kind = draw.randrange(3)
            if kind == 0:
                data[place] = draw.randrange(256)
            elif kind == 1:
                del data[place : place + draw.randrange(1, 20)]
            else:
                data[place:place] = bytes(draw.choices(b'[]{}",:0-9.eEtn\\', k=5))
        path = tmp_path / f"mutated.{'json' if turn % 2 else 'zip'}"
        path.write_bytes(data)
        report = check_submission(path)
        assert all(line.isprintable() for line in report.lines())
        faulty += bool(report.faults)
    assert faulty > 300


def test_messages_are_printable_whatever_the_file_holds(tmp_path: Path) -> None:
    bad = copy.deepcopy(entry())
    bad["\x1b[31m\ud800" + "x" * 1000] = 1
    bad["score"] = "\ud800\n" * 100
    for line in check(tmp_path, [bad]).lines():
        assert line.isprintable() and len(line) < 400
        line.encode("ascii")
