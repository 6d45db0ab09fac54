"""What a person checks before the first training: packages, GPU, memory, disk, data, a trial run.

Each check gives findings of a level: ``OK``, ``WARNING`` (it works, but not as well as it could)
or ``WRONG`` (it will not work), the latter two with what to do.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from . import __version__
from .data import read_image, read_label_map
from .data.layout import TEST_FOLDER, list_tiffs, scan_root
from .engine.trial import train_and_predict, trial_config
from .errors import CellDataError
from .machine_faults import is_out_of_memory

OK, WARNING, WRONG = "ok", "warning", "wrong"

_GIB = 2**30
_TORCHVISION_OF_TORCH = {"2.11": "0.26"}
_PACKAGES = {
    **{name: name for name in ("numpy", "scipy", "fvcore", "iopath", "pycocotools", "tifffile")},
    **{"opencv-python-headless": "cv2", "scikit-image": "skimage", "matplotlib": "matplotlib"},
    **{"faster-coco-eval": "faster_coco_eval", "tensorboard": "tensorboard", "tqdm": "tqdm"},
}
_INSTALL = "run `pip install -r requirements.txt`, or `make setup`"
# Images that are opened, spread over the data set: a look, and no inspection.
_MOST_OPENED = 12
# Blue over red, in levels, of an image's darkest tenth: nuclei are blue, seen swapped brown. Over
# the 27 training images of CoNSeP the median is 26, and -26 where red and blue are swapped.
_CLEARLY_RGB, _CLEARLY_BGR = 5.0, -15.0


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        level: ``OK``, ``WARNING`` or ``WRONG``.
        name: of what was looked at.
        text: what was found.
        advice: what to do, as an imperative; "" where all is well.
    """

    level: str
    name: str
    text: str
    advice: str = ""


def examine(
    root: str | PathLike[str] | None = None, output: str | PathLike[str] = "."
) -> Iterator[Finding]:
    """Examine the machine and the installation, and a data set if there is one; takes seconds.

    Args:
        root: folder of a data set, as ``DATASETS.CELL.ROOT``; None for none.
        output: folder that is to be written to; it may be missing.

    Yields:
        The findings, as they come.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_packages,
        check_detectron2,
        check_gpu,
        check_memory,
        lambda: check_disk(output),
    ]
    if root is not None:
        checks.append(lambda: check_data(root))
    for check in [*checks, check_trial]:
        yield from check()


def check_packages() -> Iterator[Finding]:
    """Look at the versions of what the package needs."""
    yield Finding(OK, "cellseg_d2", f"{__version__}, Python {platform.python_version()}")
    torch_version = metadata.version("torch")
    vision = metadata.version("torchvision")
    text = f"{torch_version}, torchvision {vision}"
    wanted = _TORCHVISION_OF_TORCH.get(".".join(torch_version.split(".")[:2]))
    if wanted is None:
        yield Finding(WARNING, "torch", f"{text}: not tried with these", _INSTALL)
    elif not vision.startswith(f"{wanted}."):
        yield Finding(WRONG, "torch", f"{text}: no pair, {wanted} belongs to it", _INSTALL)
    else:
        yield Finding(OK, "torch", text)
    broken = {}
    for name, module in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            broken[name] = str(error)
    for name, reason in broken.items():
        yield Finding(WRONG, name, f"cannot be imported: {reason}", _INSTALL)
    if not broken:
        yield Finding(OK, "packages", f"{len(_PACKAGES)} others can be imported")
    if util.find_spec("imagecodecs") is None:
        yield Finding(
            WARNING,
            "imagecodecs",
            "not installed: TIFFs in LZW or JPEG, as most are, cannot be read",
            "run `pip install imagecodecs`",
        )


def check_detectron2() -> Iterator[Finding]:
    """Say which Detectron2 is installed."""
    compiled = util.find_spec("detectron2._C") is not None
    kind = "compiled" if compiled else "pure Python, which is all that this package needs"
    yield Finding(OK, "Detectron2", f"{metadata.version('detectron2')}, {kind}")


def check_gpu() -> Iterator[Finding]:
    """Look for GPUs, and a driver that PyTorch cannot use."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            text = f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
            if free < 4 * _GIB:
                advice = "end what else runs on it, or lower SOLVER.IMS_PER_BATCH, INPUT.CROP.SIZE"
                yield Finding(WARNING, f"GPU {index}", text, advice)
            else:
                yield Finding(OK, f"GPU {index}", f"{text}, CUDA {torch.version.cuda}")
    elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        yield Finding(
            WARNING,
            "GPU",
            f"there is a driver, but PyTorch {torch.__version__} does not reach a GPU",
            "install a PyTorch built for CUDA and a driver that is new enough for it "
            "(pytorch.org/get-started), or look at CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding(
            WARNING,
            "GPU",
            f"none: all runs on {os.cpu_count()} CPU cores",
            "start from configs/mask_rcnn_R_18_FPN_small.yaml, which is made for that",
        )


def check_memory() -> Iterator[Finding]:
    """Look at the machine's free memory, and at that which loader workers share."""
    free = free_memory()
    if free is not None:
        text = f"{free / _GIB:.1f} GiB free"
        if free < 4 * _GIB:
            advice = "end other programs, or set DATALOADER.NUM_WORKERS 0"
            yield Finding(WARNING, "memory", text, advice)
        else:
            yield Finding(OK, "memory", text)
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        text = f"{room / _GIB:.1f} GiB for loader workers (/dev/shm)"
        if room < _GIB:
            advice = "start the container with --shm-size=8g, or set DATALOADER.NUM_WORKERS 0"
            yield Finding(WARNING, "shared memory", text, advice)
        else:
            yield Finding(OK, "shared memory", text)


def free_memory() -> int | None:
    """Return the bytes that this process can still take, by the system or the container's limit.

    Returns:
        None where the system does not say (it is no Linux).
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one of the older kind
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def check_disk(output: str | PathLike[str]) -> Iterator[Finding]:
    """Look at the room where results go, and whether anything can be written there."""
    folder = Path(output).absolute()
    while not folder.is_dir():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding(WRONG, "disk", f"{folder} cannot be written to", "name another OUTPUT_DIR")
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free at {folder}"
    advice = "make room, or name another OUTPUT_DIR; SOLVER.KEEP_CHECKPOINTS 2 keeps the run small"
    if free < _GIB:
        yield Finding(WRONG, "disk", text, advice)
    elif free < 10 * _GIB:
        yield Finding(WARNING, "disk", text, advice)
    else:
        yield Finding(OK, "disk", text)


def check_data(root: str | PathLike[str]) -> Iterator[Finding]:
    """Count a data set's images and masks, open some of them, and guess their channel order."""
    try:
        layout = scan_root(root)
    except CellDataError as fault:
        yield Finding(WRONG, "data", f"{fault.path}: {fault.found}", fault.advice)
        return
    masks = sum(len(folder.label_files) for folder in layout.folders)
    text = f"{len(layout.folders)} annotated images with {masks} masks"
    test = Path(root) / TEST_FOLDER
    if test.is_dir():
        text += f", {len(list_tiffs(test))} test images"
    yield Finding(OK if layout.folders else WRONG, "data", f"{text} in {os.fspath(root)}")
    faults = list(layout.faults)
    images = []
    step = max(1, -(-len(layout.folders) // _MOST_OPENED))
    for folder in layout.folders[::step]:
        try:
            images.append(read_image(folder.image_file))
            for path in folder.label_files.values():
                read_label_map(path, expected_size=images[-1].shape[:2])
        except CellDataError as fault:
            faults.append(fault)
    for each in faults[:5]:
        yield Finding(WRONG, "data", f"{each.path}: found {each.found}", each.advice)
    if len(faults) > 5:
        advice = "run tools/inspect_dataset.py, which lists all"
        yield Finding(WRONG, "data", f"{len(faults) - 5} more faults", advice)
    if images:
        yield _judge_colors(images)


def _judge_colors(images: list[np.ndarray]) -> Finding:
    median = float(np.median([blue_over_red(image) for image in images]))
    text = f"dark parts are {abs(median):.0f} levels {'bluer' if median > 0 else 'redder'} than "
    text += f"{'red' if median > 0 else 'blue'}, in {len(images)} images read as RGB"
    if median >= _CLEARLY_RGB:
        return Finding(OK, "channel order", f"{text}: RGB, if it is H&E")
    look = "look at tools/visualize_data.py's pictures"
    if median <= _CLEARLY_BGR:
        advice = f"if it is H&E, set INPUT.CELL.CHANNEL_ORDER BGR; {look}"
        return Finding(WARNING, "channel order", f"{text}: red and blue are swapped", advice)
    advice = f"{look}; where nuclei are brown, set INPUT.CELL.CHANNEL_ORDER BGR"
    return Finding(WARNING, "channel order", f"{text}: that does not tell", advice)


def blue_over_red(image: np.ndarray) -> float:
    """Return how many levels the darkest tenth of an image, (H, W, 3) uint8 RGB, is bluer than red.

    In H&E that is nuclei, which haematoxylin makes blue.
    """
    brightness = image.sum(axis=2, dtype=np.int64)
    dark = image[brightness <= np.quantile(brightness, 0.1)].mean(axis=0)
    return float(dark[2] - dark[0])


def check_trial() -> Iterator[Finding]:
    """Train a tiny model for one step, and predict with it."""
    start = time.monotonic()
    try:
        cfg = trial_config()
        loss, cells = train_and_predict(cfg)
    except (CellDataError, OSError, RuntimeError, MemoryError, ValueError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = "see the lines above; if they are all ok, this is a bug worth reporting"
        if is_out_of_memory(error):
            advice = "free memory"
        yield Finding(WRONG, "trial", f"{type(error).__name__}: {reason}", advice)
        return
    seconds = time.monotonic() - start
    text = f"a training step (loss {loss:.2f}) and a prediction ({cells} cells) on "
    yield Finding(OK, "trial", f"{text}{cfg.MODEL.DEVICE}, {seconds:.1f} s")
