"""``run.json``: what a run was made from, so that it can be told and made again years later.

It is written when training starts, whole, and each time the run is resumed a session is added.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata, util
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .. import __version__
from ..checkpoint.files import replace_file
from ..data.layout import image_name
from .run_folder import RECORD_FILE, changed_keys, config_as_data, read_record

logger = logging.getLogger(__name__)

_PACKAGES = (
    *("torch", "torchvision", "detectron2", "fvcore", "numpy", "scipy", "scikit-image"),
    *("opencv-python-headless", "tifffile", "imagecodecs", "pycocotools", "faster-coco-eval"),
)
# These alone: the environment also holds what is nobody's business.
_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
)


def write_run_record(
    cfg: CfgNode, iteration: int = 0, command: Sequence[str] | None = None
) -> None:
    """Write ``run.json`` into ``OUTPUT_DIR``, or add a session to it; on the main process alone.

    Args:
        cfg: of the run, with its data sets registered.
        iteration: the first of this session; above 0 it is a resumed run.
        command: the command line; None for this process's.

    Raises:
        CellDataError: for a record that cannot be read.
        OSError: where it cannot be written.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    config, data = config_as_data(cfg), describe_data(cfg)
    session: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "iteration": iteration,
        "command": list(sys.argv if command is None else command),
        "program": {"cellseg_d2": __version__, "git": git_revision(Path(__file__).parents[2])},
        "versions": versions(),
        "environment": environment(cfg),
    }
    record = read_record(folder) if iteration else None
    if record is None:
        record = {
            "seeds": {
                "SEED": cfg.SEED,
                "DATASETS.CELL.SPLIT_SEED": cfg.DATASETS.CELL.SPLIT_SEED,
            },
            "weights": describe_weights(cfg.MODEL.WEIGHTS),
            "data": data,
            "sessions": [],
        }
    else:
        checkpoint = folder / "last_checkpoint"
        session["checkpoint"] = checkpoint.read_text().strip() if checkpoint.is_file() else None
        session["changed"] = changed_keys(record["config"], config)
        if data["fingerprint"] != record["data"]["fingerprint"]:
            logger.warning(
                "the data are not those that this run began with: fingerprint %s, was %s",
                data["fingerprint"],
                record["data"]["fingerprint"],
            )
            session["data"] = data
    record["config"] = config
    record["sessions"].append(session)
    with replace_file(folder / RECORD_FILE) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def describe_data(cfg: CfgNode) -> dict[str, Any]:
    """Return the root, the fingerprint of all images of a run, and which are in which set."""
    sets = {name: DatasetCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    root = cfg.DATASETS.CELL.ROOT
    every = {item["file_name"]: item for dicts in sets.values() for item in dicts}
    return {
        "root": os.path.abspath(root),
        "fingerprint": fingerprint(root, every.values()),
        "sets": {
            name: {
                "images": len(dicts),
                "instances": sum(len(item.get("annotations", ())) for item in dicts),
                "names": sorted(image_name(item["file_name"]) for item in dicts),
            }
            for name, dicts in sets.items()
        },
    }


def fingerprint(root: str | PathLike[str], dicts: Iterable[dict[str, Any]]) -> str:
    """Return a hash that changes with the data and not with the place they lie at.

    Of images it covers the names below the root, the sizes in pixels and the files' in bytes; of
    instances all: class and every pixel, as they were parsed. An image whose pixels alone were
    edited, in a file of the same length, is not seen: to read all images would take minutes. Times
    of files are left out, which differ between copies.

    Args:
        root: of the data set.
        dicts: as ``load_cell_dicts`` gives them, in any order.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    named = {Path(os.path.relpath(item["file_name"], root)).as_posix(): item for item in dicts}
    for name, item in sorted(named.items()):
        size = os.path.getsize(item["file_name"])
        head = [name, size, item["height"], item["width"], item.get("instances")]
        total.update(json.dumps(head).encode())
        for annotation in item.get("annotations", ()):
            counts = annotation["segmentation"]["counts"]
            total.update(b"\n%d " % annotation["category_id"])
            total.update(counts if isinstance(counts, bytes) else str(counts).encode())
        total.update(b"\0")
    return total.hexdigest()


def describe_weights(path: str) -> dict[str, Any]:
    """Return where weights come from: path, size in bytes and SHA-256; of "" that there are none.

    Args:
        path: ``MODEL.WEIGHTS``; an address is read from where it has been downloaded to.

    Raises:
        OSError: where the file cannot be read.
    """
    if not path:
        return {"from": "scratch"}
    with open(PathManager.get_local_path(path), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"from": path, "bytes": file.tell(), "sha256": digest}


def git_revision(repository: Path) -> dict[str, Any] | None:
    """Return the commit that the program is at, and whether it was changed since.

    Args:
        repository: folder that holds the package.

    Returns:
        ``revision`` and ``dirty`` (of tracked files); None where the program is no checkout.
    """
    # An installed package may lie inside of somebody else's checkout.
    tracked = _git(repository, "ls-files", "--error-unmatch", "cellseg_d2/__init__.py")
    revision = _git(repository, "rev-parse", "HEAD")
    changes = _git(repository, "status", "--porcelain", "--untracked-files=no")
    if tracked is None or revision is None or changes is None:
        return None
    return {"revision": revision, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # Set where git itself runs a program, for another repository perhaps.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", os.fspath(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=variables)
    except OSError:  # no git here
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def versions() -> dict[str, Any]:
    """Return the versions of Python and of what computes; None for what is not installed."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["detectron2 compiled"] = util.find_spec("detectron2._C") is not None
    found["cuda"] = torch.version.cuda
    found["cudnn"] = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return found


def environment(cfg: CfgNode) -> dict[str, Any]:
    """Return the machine: system, processors, threads, processes, and some variables if set."""
    gpus = range(torch.cuda.device_count())
    return {
        "system": platform.platform(),
        "device": cfg.MODEL.DEVICE,
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": comm.get_world_size(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
