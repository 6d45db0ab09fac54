"""From TIFF folders to the model's input."""

from ..errors import CellDataError
from .dataset_mapper import CellDatasetMapper
from .datasets import load_cell_dicts, register_cell_dataset
from .id_map import read_id_map
from .image_dicts import load_image_dicts
from .tiff import read_image, read_label_map

__all__ = [
    "CellDataError",
    "CellDatasetMapper",
    "load_cell_dicts",
    "load_image_dicts",
    "read_id_map",
    "read_image",
    "read_label_map",
    "register_cell_dataset",
]
