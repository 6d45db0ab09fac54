import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg_d2.data.id_map import IdMapEntry, check_in_id_map, missing_images, read_id_map
from cellseg_d2.errors import CellDataError

GOOD = {"file_name": "b.tif", "id": 2, "height": 5, "width": 7}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_the_released_format(tmp_path):
    entries = [GOOD, {"file_name": "a.b.tif", "id": 1, "height": 1, "width": 1, "more": None}]
    id_map = read_id_map(write(tmp_path / "map.json", entries))
    assert id_map == {"b": IdMapEntry("b.tif", 2, 5, 7), "a.b": IdMapEntry("a.b.tif", 1, 1, 1)}
    assert list(id_map) == ["b", "a.b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ('[{"file_name"', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" + "9" * 10_000 + "]", "cannot be read as JSON"),
        ({"a": 1}, "a JSON dict"),
        ([3], "a JSON int as entry 1"),
        ([GOOD, {**GOOD, "id": 3}], "two entries for the image 'b'"),
        ([GOOD, {**GOOD, "file_name": "b.tiff", "id": 3}], "two entries for the image 'b'"),
        ([GOOD, {**GOOD, "file_name": "c.tif"}], "the id 2 given to 'b' and to 'c'"),
        ([{**GOOD, "file_name": None}], "no file_name"),
        *(
            ([{**GOOD, "file_name": name}], "not a plain file name")
            for name in ("", "..", "../b.tif", "/etc/b.tif", "x/b.tif", "x\\b.tif", "b\0.tif")
        ),
        *(
            ([{**GOOD, key: value}], f"{key} = ")
            for key in ("id", "height", "width")
            for value in (None, "3", 1.0, True, -1)
        ),
        ([{**GOOD, "height": 0}], "height = 0"),
        ([{**GOOD, "file_name": "image.tif"}], "says nothing about the image"),
    ],
)
def test_refuses(tmp_path, content, message):
    path = write(tmp_path / "map.json", content)
    with pytest.raises(CellDataError) as caught:
        read_id_map(path)
    assert message in str(caught.value) and caught.value.path == str(path)


def test_spaces_of_all_scripts_are_printable(tmp_path):
    names = ["細胞\u3000一", "a\u00a0b"]
    entries = [{**GOOD, "file_name": f"{name}.tif", "id": i} for i, name in enumerate(names)]
    assert list(read_id_map(write(tmp_path / "map.json", entries))) == names


def test_refuses_files_that_are_no_text(tmp_path):
    (tmp_path / "map.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CellDataError, match="cannot be read"):
        read_id_map(tmp_path / "map.json")
    with pytest.raises(CellDataError, match="No such file"):
        read_id_map(tmp_path / "gone.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["file_name", "id", "height", "width"]) | st.text(), inner, max_size=5
    ),
    max_leaves=12,
)


@given(json_values | st.lists(json_values))
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = write(tmp_path_factory.getbasetemp() / "any.json", value)
    try:
        id_map = read_id_map(path)
    except CellDataError:
        return
    assert len(id_map) == len(value)


class TestCheck:
    id_map = {"b": IdMapEntry("b.tif", 2, 5, 7)}

    def test_found(self, tmp_path):
        assert check_in_id_map(tmp_path / "b.tif", (5, 7), self.id_map).id == 2

    def test_absent(self, tmp_path):
        with pytest.raises(CellDataError, match="does not name"):
            check_in_id_map(tmp_path / "c.tif", (5, 7), self.id_map)

    def test_size(self, tmp_path):
        with pytest.raises(CellDataError, match="7×5 pixels.*expected 5×7"):
            check_in_id_map(tmp_path / "b.tif", (7, 5), self.id_map)

    def test_links(self, tmp_path):
        (tmp_path / "outside.tif").touch()
        folder = tmp_path / "images"
        folder.mkdir()
        (folder / "inside.tif").touch()
        (folder / "b.tif").symlink_to(folder / "inside.tif")
        assert check_in_id_map(folder / "b.tif", (5, 7), self.id_map).id == 2
        (tmp_path / "linked").symlink_to(folder)
        assert check_in_id_map(tmp_path / "linked/b.tif", (5, 7), self.id_map).id == 2
        (folder / "b.tif").unlink()
        (folder / "b.tif").symlink_to("../outside.tif")
        with pytest.raises(CellDataError, match="a link out of its folder"):
            check_in_id_map(folder / "b.tif", (5, 7), self.id_map)

    def test_missing_images(self):
        id_map = {name: IdMapEntry(f"{name}.tif", 1, 1, 1) for name in "cab"}
        assert missing_images(["x/a.tif", "d.tif"], id_map) == ["c.tif", "b.tif"]
