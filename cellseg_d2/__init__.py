"""cellseg_d2: a Detectron2 plug-in that finds, outlines and names every cell in a microscopy TIFF.

Importing it registers the models with Detectron2; it reads no disk and no environment variable.
"""

from . import modeling
from .config import add_cellseg_config, load_config
from .errors import CellDataError, ConfigError

__version__ = "0.1.0"
__all__ = [
    "CellDataError",
    "ConfigError",
    "__version__",
    "add_cellseg_config",
    "load_config",
    "modeling",
]
