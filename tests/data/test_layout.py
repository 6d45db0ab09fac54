import os
from pathlib import Path

import pytest

from cellseg_d2.data.layout import (
    image_name,
    list_tiffs,
    scan_root,
    unique_image_names,
)
from cellseg_d2.errors import CellDataError


def make(root, *paths):
    """Makes empty files; the layout is read from names alone."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def found(root, **options):
    layout = scan_root(root, **options)
    return {folder.name: list(folder.label_files) for folder in layout.folders}


class TestScanRoot:
    def test_train_folder(self, tmp_path, caplog):
        make(tmp_path, "train/b/image.tif", "train/b/class4.tif", "train/b/class1.tif")
        make(tmp_path, "train/a/image.tif", "test_release/t.tif", "beside/image.tif")
        layout = scan_root(tmp_path)
        assert [folder.name for folder in layout.folders] == ["a", "b"]
        assert layout.folders[1].image_file == tmp_path / "train/b/image.tif"
        assert layout.folders[1].label_files == {
            0: tmp_path / "train/b/class1.tif",
            3: tmp_path / "train/b/class4.tif",
        }
        assert not layout.faults and not layout.ignored
        assert "not part of the data set, beside train/: beside" in caplog.text

    def test_an_unreadable_folder_beside_train_is_no_part(self, tmp_path, monkeypatch):
        make(tmp_path, "train/a/image.tif", "lost+found/x")
        listdir = os.listdir

        def refuse(path):
            if Path(path).name == "lost+found":
                raise PermissionError(13, "Permission denied")
            return listdir(path)

        monkeypatch.setattr(os, "listdir", refuse)
        assert found(tmp_path) == {"a": []}

    @pytest.mark.parametrize("parent", ["train/", ""])
    def test_images_in_other_places_are_faults(self, tmp_path, parent):
        make(tmp_path, *(f"{parent}{name}" for name in ("a/image.tif", "b.tif", "c/d/image.tif")))
        layout = scan_root(tmp_path)
        assert [folder.name for folder in layout.folders] == ["a"]
        assert not layout.ignored
        nested, loose = layout.faults
        assert nested.path == str(tmp_path / parent / "c")
        assert nested.found == "image folders one level too deep (d)"
        assert loose.path == str(tmp_path / parent).rstrip("/")
        assert loose.found == "b.tif beside image folders"

    def test_a_folder_too_high_is_told(self, tmp_path):
        make(tmp_path, "cells/a/image.tif", "cells/b/image.tif")
        with pytest.raises(CellDataError, match="no image folder.*point to the folder above"):
            scan_root(tmp_path)

    def test_image_folders(self, tmp_path):
        make(tmp_path, "x/image.tif", "y/image.tif", "y/class2.tif", "test_release/t.tif")
        assert found(tmp_path) == {"x": [], "y": [1]}

    def test_one_image(self, tmp_path, monkeypatch):
        make(tmp_path, "only/image.tif", "only/class3.tif")
        assert found(tmp_path / "only") == {"only": [2]}
        monkeypatch.chdir(tmp_path / "only")
        assert found(".") == {"only": [2]}

    def test_categories_sort_by_number(self, tmp_path):
        make(tmp_path, *(f"a/class{k}.tif" for k in (10, 2, 1)), "a/image.tif")
        assert found(tmp_path, num_classes=10) == {"a": [0, 1, 9]}

    def test_stray_files_are_ignored(self, tmp_path):
        make(tmp_path, "a/image.tif", "a/._class1.tif", "a/.DS_Store", "a/class1.png", "a/notes")
        make(tmp_path, "a/class1_old.tif", "a/deeper/image.tif", "__MACOSX/a/image.tif")
        make(tmp_path, ".cache/image.tif", "readme.txt")
        layout = scan_root(tmp_path)
        assert [folder.label_files for folder in layout.folders] == [{}]
        assert not layout.faults and not layout.ignored

    def test_folders_without_tiffs_are_listed(self, tmp_path):
        make(tmp_path, "a/image.tif", "b/image.png")
        (tmp_path / "c").mkdir()
        assert scan_root(tmp_path).ignored == [tmp_path / "b", tmp_path / "c"]

    def test_linked_folder(self, tmp_path):
        make(tmp_path, "elsewhere/image.tif", "elsewhere/class1.tif")
        (tmp_path / "root").mkdir()
        (tmp_path / "root/a").symlink_to(tmp_path / "elsewhere")
        assert found(tmp_path / "root") == {"a": [0]}

    @pytest.mark.parametrize(
        "name",
        ["class5.tif", "class0.tif", "class01.tif", "Class1.tif", "class1.tiff", "class_1.TIF"],
    )
    def test_class_file_that_would_be_missed(self, tmp_path, name):
        make(tmp_path, "a/image.tif", f"a/{name}", "b/image.tif")
        layout = scan_root(tmp_path)
        assert [folder.name for folder in layout.folders] == ["b"]
        (fault,) = layout.faults
        assert fault.path == str(tmp_path / "a" / name)
        assert "class1.tif … class4.tif" in fault.expected

    def test_class_beyond_num_classes(self, tmp_path):
        make(tmp_path, "a/image.tif", "a/class2.tif", "a/class3.tif")
        (fault,) = scan_root(tmp_path, num_classes=2).faults
        assert fault.path.endswith("class3.tif")
        assert found(tmp_path, num_classes=3) == {"a": [1, 2]}

    @pytest.mark.parametrize("name", ["class1.tif", "image.tiff", "Image.tif", "photo.tif"])
    def test_folder_without_image(self, tmp_path, name):
        make(tmp_path, f"a/{name}", "b/image.tif")
        faults = scan_root(tmp_path).faults
        assert faults[0].path == str(tmp_path / "a")
        assert name in faults[0].found and "image.tif" in faults[0].expected

    def test_one_mask_folder_as_root(self, tmp_path):
        make(tmp_path, "a/class1.tif")
        (fault,) = scan_root(tmp_path / "a").faults
        assert "without image.tif" in str(fault)

    def test_every_fault_of_a_folder_is_reported(self, tmp_path):
        make(tmp_path, "a/class9.tif", "a/class07.tif")
        (tmp_path / "a/class1.tif").mkdir()
        (tmp_path / "a/class2.tif").symlink_to(tmp_path / "gone")
        faults = scan_root(tmp_path).faults
        assert [os.path.basename(fault.path) for fault in faults] == [
            "a", "class07.tif", "class9.tif", "class1.tif", "class2.tif",
        ]  # fmt: skip
        assert "a folder" in faults[3].found and "broken link" in faults[4].found

    def test_roots_that_hold_nothing(self, tmp_path):
        with pytest.raises(CellDataError, match="nothing.*check the path"):
            scan_root(tmp_path / "gone")
        make(tmp_path, "file", "test_release/t.tif")
        with pytest.raises(CellDataError, match="a file"):
            scan_root(tmp_path / "file")
        with pytest.raises(CellDataError, match="no image folder"):
            scan_root(tmp_path)

    def test_unreadable_folder(self, tmp_path, monkeypatch):
        make(tmp_path, "a/image.tif", "b/image.tif")
        listdir = os.listdir

        def refuse(folder):
            if os.path.basename(folder) == "a":
                raise PermissionError(13, "Permission denied")
            return listdir(folder)

        monkeypatch.setattr(os, "listdir", refuse)
        layout = scan_root(tmp_path)
        assert [folder.name for folder in layout.folders] == ["b"]
        assert "Permission denied" in layout.faults[0].found


class TestNames:
    def test_image_name(self, tmp_path, monkeypatch):
        assert image_name("x/y/0a.b.tif") == "0a.b"
        assert image_name("x/y.z/image.tif") == "y.z"
        assert image_name("image2.tif") == "image2"
        monkeypatch.chdir(tmp_path)
        assert image_name("image.tif") == tmp_path.name

    def test_clash(self):
        assert unique_image_names(["a/image.tif", "b.tif"]) == ["a", "b"]
        with pytest.raises(CellDataError, match="first is x/a.tif"):
            unique_image_names(["x/a.tif", "a/image.tif"])


def test_list_tiffs(tmp_path):
    make(tmp_path, "b.tif", "a.TIFF", ".c.tif", "d.png", "e/f.tif")
    assert list_tiffs(tmp_path) == [tmp_path / "a.TIFF", tmp_path / "b.tif"]
    with pytest.raises(CellDataError, match="cannot be listed"):
        list_tiffs(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CellDataError, match="no .tif file"):
        list_tiffs(tmp_path / "empty")
