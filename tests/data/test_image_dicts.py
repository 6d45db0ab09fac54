import json

import numpy as np
import pytest
import tifffile

from cellseg_d2.data.id_map import IdMapEntry
from cellseg_d2.data.image_dicts import collect_test_dicts, load_image_dicts, raise_faults
from cellseg_d2.errors import CellDataError


def write(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.zeros((*size, 3), np.uint8), photometric="rgb")
    return path


def test_ids_count_in_the_order_of_names(tmp_path):
    files = [
        write(tmp_path / "z/image.tif", (4, 6)),
        write(tmp_path / "b.tif", (5, 7)),
        write(tmp_path / "x/c.tif", (3, 3)),
    ]
    for order in (files, files[::-1]):
        assert load_image_dicts(order) == [
            {"file_name": str(files[1]), "image_id": 1, "height": 5, "width": 7},
            {"file_name": str(files[2]), "image_id": 2, "height": 3, "width": 3},
            {"file_name": str(files[0]), "image_id": 3, "height": 4, "width": 6},
        ]


def test_id_map(tmp_path):
    id_map = {
        "a": IdMapEntry("a.tif", 9, 5, 7),
        "b": IdMapEntry("b.tif", 4, 5, 7),
        "not_here": IdMapEntry("not_here.tif", 1, 5, 7),
    }
    files = [write(tmp_path / f"{name}.tif", (5, 7)) for name in "ba"]
    assert [d["image_id"] for d in load_image_dicts(files, id_map)] == [9, 4]


def test_every_fault_is_in_the_error(tmp_path):
    write(tmp_path / "good.tif", (5, 7))
    write(tmp_path / "size.tif", (5, 8))
    write(tmp_path / "name.tif", (5, 7))
    (tmp_path / "broken.tif").write_bytes(b"no TIFF")
    id_map = {n: IdMapEntry(f"{n}.tif", i, 5, 7) for i, n in enumerate(("good", "size", "broken"))}
    with pytest.raises(CellDataError) as caught:
        load_image_dicts(sorted(tmp_path.iterdir()), id_map)
    assert caught.value.path == str(tmp_path)
    assert "3 faults" in str(caught.value)
    for name in ("size", "name", "broken"):
        assert f"{name}.tif" in str(caught.value)
    assert "good.tif" not in str(caught.value)


def test_test_images_in_a_folder_of_their_own_are_a_fault(tmp_path):
    write(tmp_path / "test_release/a.tif", (5, 7))
    write(tmp_path / "test_release/more/b.tif", (5, 7))
    dicts, faults = collect_test_dicts(tmp_path)
    assert len(dicts) == 1
    assert [fault.path for fault in faults] == [str(tmp_path / "test_release/more")]


def test_clash(tmp_path):
    with pytest.raises(CellDataError, match="a second image called 'a'"):
        load_image_dicts([write(tmp_path / "x/a.tif", (5, 7)), write(tmp_path / "y/a.tif", (5, 7))])


def test_raise_faults():
    one, other = (CellDataError(name, "x", "y", "z") for name in "ab")
    raise_faults("root", [])
    with pytest.raises(CellDataError) as caught:
        raise_faults("root", [one])
    assert caught.value is one
    with pytest.raises(CellDataError, match="root: found 2 faults:\n  a: .*\n  b: "):
        raise_faults("root", [one, other])
    with pytest.raises(CellDataError, match="found 25 faults:(\n  a: .*){20}\n  and 5 more"):
        raise_faults("root", [one] * 25)


def test_json_holds_the_dicts(tmp_path):
    json.dumps(load_image_dicts([write(tmp_path / "a.tif", (5, 7))]))
