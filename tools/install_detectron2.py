#!/usr/bin/env python
"""Install Detectron2 0.6 as a pure-Python package, or check the one that is there.

Detectron2 is not on the package index under its own name, and its last release does not import
with current Pillow and NumPy. An sdist of its Python sources is; Mask R-CNN needs none of the
compiled operators, since RoIAlign and NMS come from torchvision. This script downloads that sdist
(hash checked), applies the compatibility edits listed in ``EDITS``, each of which upstream has
made since, and installs the result as the distribution ``detectron2`` 0.6.

A Detectron2 that is already installed, compiled or not, is used as it is when it works.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SDIST_REQUIREMENT = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
INSTALL_PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


class InstallError(RuntimeError):
    """The installation cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Edit:
    """Replace a name or line of one source file, exactly ``count`` times.

    ``old`` is matched as whole words, so that ``np.int`` does not touch ``np.int64``.
    """

    file: str
    old: str
    new: str
    count: int = 1


_GUARDED_EXTENSION = """try:
    from detectron2 import _C
except ImportError:  # pure-Python installation
    _C = None"""
_GUARDED_FAST_EVAL = """try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:  # pure-Python installation
    COCOeval_opt = COCOeval"""

EDITS = (
    # Pillow 10 dropped Image.LINEAR, the old name of BILINEAR.
    Edit("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR"),
    # NumPy 1.24 dropped its aliases of the builtins.
    Edit("data/build.py", "np.int", "int", 2),
    Edit("structures/masks.py", "np.bool", "bool", 3),
    Edit("utils/visualizer.py", "np.bool", "bool", 3),
    Edit("utils/video_visualizer.py", "np.bool", "bool"),
    Edit("evaluation/pascal_voc_evaluation.py", "np.bool", "bool", 2),
    Edit("evaluation/sem_seg_evaluation.py", "np.int", "int", 2),
    Edit("evaluation/sem_seg_evaluation.py", "np.float", "float", 5),
    # The compiled operators are optional: rotated boxes and deformable convolutions use them.
    Edit("layers/deform_conv.py", "from detectron2 import _C", _GUARDED_EXTENSION),
    Edit("layers/rotated_boxes.py", "from detectron2 import _C", _GUARDED_EXTENSION),
    Edit("layers/roi_align_rotated.py", "from detectron2 import _C", _GUARDED_EXTENSION),
    Edit(
        "evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt",
        _GUARDED_FAST_EVAL,
    ),
)

# What the edited tree is built with: upstream's own setup.py compiles C++ and pins old packages.
_SETUP_PY = """
from setuptools import find_packages, setup

PROJECTS = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}
setup(
    name="detectron2",
    version="0.6",
    description="Detectron2 0.6, pure Python",
    license="Apache-2.0",
    packages=find_packages(include=["detectron2", "detectron2.*"]) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    include_package_data=False,
    python_requires=">=3.8",
    install_requires=[
        "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8",
        "tabulate", "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1", "setuptools<82",
    ],
)
"""

# Run in a fresh interpreter: the modules that the edits touch, then a tiny model end to end.
_PROBE = """
import importlib
for module in {modules!r}:
    importlib.import_module(module)
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
import detectron2.projects.point_rend
cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.WEIGHTS = ""
cfg.MODEL.RESNETS.DEPTH = 18
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
cfg.MODEL.FPN.OUT_CHANNELS = 8
cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
model = build_model(cfg).eval()
with torch.no_grad():
    answer = model([{{"image": torch.zeros(3, 64, 64)}}])
assert "instances" in answer[0]
try:
    from detectron2 import _C
    kind = "compiled"
except ImportError:
    kind = "pure Python"
import detectron2
print(detectron2.__version__, kind)
"""


def probe() -> str:
    """Import the edited modules of the installed Detectron2 and run a tiny model.

    Returns:
        Version and kind, such as ``"0.6 pure Python"``.

    Raises:
        InstallError: where any of it fails.
    """
    modules = sorted({"detectron2." + e.file[:-3].replace("/", ".") for e in EDITS})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROBE.format(modules=modules)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InstallError(
            f"the Detectron2 installed in {sys.prefix} does not work: {reason}\n"
            f"Remove it (`{sys.executable} -m pip uninstall detectron2`) and run this again, "
            f"or build the compiled one as {INSTALL_PAGE} says."
        )
    return done.stdout.strip().splitlines()[-1]


def download(folder: Path) -> Path:
    """Fetch the sdist into ``folder`` with pip, which checks its hash, and return its path.

    Raises:
        InstallError: where pip fails.
    """
    requirement = folder / "sdist.txt"
    requirement.write_text(f"{SDIST_REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:", "--require-hashes", "-r", str(requirement)]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(
            f"pip could not download {SDIST_REQUIREMENT}:\n{done.stderr.strip()}\n"
            "Its metadata step imports torch: install requirements.txt first. Without a network, "
            "pass the file with --sdist, or a wheel that --wheel wrote elsewhere to pip."
        )
    found = sorted(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise InstallError(f"expected one sdist in {folder}, found {[p.name for p in found]}")
    return found[0]


def check_hash(sdist: Path) -> None:
    """Refuse any file but the one the edits were written for.

    Raises:
        InstallError: where the SHA-256 differs or the file cannot be read.
    """
    try:
        digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"{sdist} cannot be read: {error}") from error
    if digest != SDIST_SHA256:
        raise InstallError(
            f"{sdist} has SHA-256 {digest}, expected {SDIST_SHA256}: it is damaged or another "
            f"release; delete it and let this script download {SDIST_REQUIREMENT}"
        )


def apply_edits(package: Path, edits: Sequence[Edit] = EDITS) -> None:
    """Apply every edit to the ``detectron2`` folder, or none of them.

    Raises:
        InstallError: where a file is missing or a text does not occur as often as the edit says.
    """
    edited: dict[Path, str] = {}
    for edit in edits:
        path = package / edit.file
        if path not in edited:
            if not path.is_file():
                raise InstallError(f"edit of {edit.file}: no such file in {package}")
            edited[path] = path.read_text(encoding="utf-8")
        pattern = rf"(?<![\w.]){re.escape(edit.old)}(?!\w)"
        text, count = re.subn(pattern, lambda _, new=edit.new: new, edited[path])
        if count != edit.count:
            raise InstallError(
                f"edit of {edit.file}: {edit.old!r} occurs {count} times, expected {edit.count}; "
                "these are not the sources of release 0.6"
            )
        edited[path] = text
    for path, text in edited.items():
        path.write_text(text, encoding="utf-8")


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Check, unpack, edit and build ``sdist``; return the wheel written into ``folder``.

    Raises:
        InstallError: where any of the steps fails.
    """
    check_hash(sdist)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(sdist) as archive:
            archive.extractall(name, filter="data")
        (source,) = Path(name).iterdir()
        apply_edits(source / "detectron2")
        (source / "setup.py").write_text(_SETUP_PY)
        (source / "setup.cfg").unlink(missing_ok=True)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "-w", str(folder), str(source)], capture_output=True, text=True
        )
    if done.returncode != 0:
        raise InstallError(f"the wheel could not be built:\n{done.stderr.strip()}")
    return folder / "detectron2-0.6-py3-none-any.whl"


def install(wheel: Path) -> None:
    """Install the wheel with pip; its dependencies are those of requirements.txt.

    Raises:
        InstallError: where pip fails.
    """
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(f"pip could not install {wheel.name}:\n{done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheel", metavar="DIR", type=Path, help="write the wheel there instead of installing it"
    )
    parser.add_argument(
        "--sdist", metavar="FILE", type=Path, help="use this copy of the sdist, do not download"
    )
    options = parser.parse_args(arguments)
    try:
        if options.wheel is None and importlib.util.find_spec("detectron2") is not None:
            print(f"Detectron2 is installed and works: {probe()}")
            return 0
        with tempfile.TemporaryDirectory() as name:
            sdist = options.sdist or download(Path(name))
            wheel = build_wheel(sdist, options.wheel or Path(name))
            if options.wheel is not None:
                print(f"wrote {wheel}")
                return 0
            install(wheel)
        print(f"installed Detectron2 {probe()}")
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
