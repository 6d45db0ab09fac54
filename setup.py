"""Packaging of cellseg_d2; requirements.txt holds the pinned set that is tested."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="cellseg_d2",
    version="0.1.0",
    description="Detectron2 plug-in: finds, outlines and names every cell in a microscopy TIFF",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["cellseg_d2", "cellseg_d2.*"]),
    package_data={"cellseg_d2.visualization.report": ["*.html", "*.css", "*.js"]},
    python_requires=">=3.11,<3.13",
    # detectron2 is not listed: it is not on the package index (tools/install_detectron2.py).
    install_requires=[
        "torch>=2.6,<2.12",
        "torchvision>=0.21,<0.27",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9",
        "pycocotools>=2.0.8",
        "faster-coco-eval>=1.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "opencv-python-headless>=4.9",
        "scikit-image>=0.22",
        "tifffile>=2024.1",
        "imagecodecs>=2024.1",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "tensorboard>=2.15",
        "Jinja2>=3.1",
        "setuptools<82",
    ],
    extras_require={"dev": ["pytest>=8", "hypothesis>=6", "black>=25", "ruff>=0.9", "mypy>=1.13"]},
)
