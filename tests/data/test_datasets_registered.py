"""Data sets in the catalogs, and what Detectron2 makes of them."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader

from cellseg_d2.data.datasets import load_cell_dicts, register_cell_dataset
from cellseg_d2.errors import CellDataError

from .label_roots import same


class TestRegister:
    names = ("a", "b", "c", "d")
    colors = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))

    @pytest.fixture(autouse=True)
    def clean_catalogs(self):
        yield
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in [name for name in catalog.list() if name.startswith("cells_unit_")]:
                catalog.remove(name)

    def test_loads_when_asked(self, root):
        register_cell_dataset("cells_unit_x", root / "gone", class_names=self.names)
        with pytest.raises(CellDataError):
            DatasetCatalog.get("cells_unit_x")
        register_cell_dataset(
            "cells_unit_x", root, class_names=self.names, class_colors=self.colors, min_area=24
        )
        assert same(DatasetCatalog.get("cells_unit_x"), load_cell_dicts(root, min_area=24))
        metadata = MetadataCatalog.get("cells_unit_x")
        assert metadata.thing_classes == list(self.names)
        assert metadata.thing_colors == list(self.colors)
        assert metadata.evaluator_type == "cell"

    def test_number_of_classes_is_that_of_the_names(self, root):
        register_cell_dataset("cells_unit_x", root, class_names=("a", "b"))
        with pytest.raises(CellDataError, match="class4.tif"):
            DatasetCatalog.get("cells_unit_x")

    def test_given_dicts(self, root):
        calls = []

        def val():
            calls.append(1)
            return load_cell_dicts(root)[:1]

        register_cell_dataset("cells_unit_x", root, class_names=self.names, dicts=val)
        assert not calls
        assert len(DatasetCatalog.get("cells_unit_x")) == 1 and calls

    def test_again(self, root, tmp_path):
        def register(**options):
            arguments = {"class_names": self.names, **options}
            register_cell_dataset("cells_unit_x", root, **arguments)
            return DatasetCatalog["cells_unit_x"]

        first = register()
        MetadataCatalog.get("cells_unit_x").set(json_file="kept.json")
        assert register() is first
        assert MetadataCatalog.get("cells_unit_x").json_file == "kept.json"
        assert register(min_area=3) is not first
        assert not hasattr(MetadataCatalog.get("cells_unit_x"), "json_file")
        register(class_names=("a", "b", "c", "e"))
        assert MetadataCatalog.get("cells_unit_x").thing_classes[3] == "e"
        register(dicts=list)
        assert DatasetCatalog.get("cells_unit_x") == []

    def test_foreign_names_stay(self, root):
        before = DatasetCatalog["coco_2017_val"]
        with pytest.raises(ValueError, match="another kind"):
            register_cell_dataset("coco_2017_val", root, class_names=self.names)
        assert DatasetCatalog["coco_2017_val"] is before

    def test_wrong_usage(self, root):
        with pytest.raises(ValueError, match="4 colours for 2 classes"):
            register_cell_dataset(
                "cells_unit_x", root, class_names=("a", "b"), class_colors=self.colors
            )
        with pytest.raises(ValueError, match="min_area"):
            register_cell_dataset(
                "cells_unit_x", root, class_names=self.names, dicts=list, min_area=2
            )

        with pytest.raises(TypeError, match="min_size"):
            register_cell_dataset("cells_unit_x", root, class_names=self.names, min_size=2)
        assert "cells_unit_x" not in DatasetCatalog

    def test_detectron2_loader_takes_it(self, root):
        register_cell_dataset("cells_unit_x", root, class_names=self.names)
        loader = build_detection_test_loader(
            DatasetCatalog.get("cells_unit_x"), mapper=lambda record: record["image_id"]
        )
        assert [batch for batch in loader] == [[1], [2], [3]]
