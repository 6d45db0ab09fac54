"""H&E-like synthetic tissue with exact instance masks, in the layout of the released data set.

Images are built as amounts of two stains (haematoxylin and eosin) per pixel and turned into light
by the Beer-Lambert law, with the stain vectors of Ruifrok & Johnston, "Quantification of
histochemical staining by color deconvolution", Anal Quant Cytol Histol 23 (2001). Each cell is
drawn in its own small window: no array of shape (cells, H, W) exists, so the time grows with the
painted area and 10,000 x 10,000 pixels fit in memory.
"""

from .dataset import (
    FORMAT_VERSION,
    ID_MAP_FILE,
    PARAMETER_FILE,
    SyntheticParameters,
    write_dataset,
)
from .image import CLASS_WEIGHTS, make_image
from .label_map import make_label_map
from .painting import MACENKO_STAINS, RUIFROK_STAINS
from .slide import write_slide

__all__ = [
    "CLASS_WEIGHTS",
    "FORMAT_VERSION",
    "ID_MAP_FILE",
    "MACENKO_STAINS",
    "PARAMETER_FILE",
    "RUIFROK_STAINS",
    "SyntheticParameters",
    "make_image",
    "make_label_map",
    "write_dataset",
    "write_slide",
]
