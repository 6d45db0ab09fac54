"""A training and a prediction that are to be killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cellseg_d2.checkpoint.files import read_tensors

from .files import Difference, check, contents, no_half_files, same

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "mask_rcnn_R_18_FPN_small.yaml"
MODEL = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "50", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "INPUT.CELL.CHANNEL_ORDER", "BGR"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "[48, 48]"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_EPOCHS", "0", "SOLVER.MAX_ITER", "40"),
    *("SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.KEEP_CHECKPOINTS", "2"),
    *("SOLVER.EMA.ENABLED", "True", "TEST.EVAL_PERIOD", "20", "TEST.LOSS_IMAGES", "1"),
    *("TEST.EARLY_STOPPING.PATIENCE", "50"),
]
OUTPUTS = ["--labels", "--geojson", "--csv", "--overlay", "--score-threshold", "0"]


def load_script(name: str) -> ModuleType:
    """Import a script of the repository's root."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{REPOSITORY / name}.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Once, before any job is started in a fork.
TRAIN_SCRIPT, PREDICT_SCRIPT = load_script("train_net"), load_script("predict")


@dataclass
class Job:
    """A command that is to be killed.

    Attributes:
        name: of the command, for messages.
        start: runs it in this process, into a folder; returns its exit status.
        inspect: looks at the folder of a killed run; returns how far it is, to be compared by `<=`,
            or None where it was complete.
        compare: raises `Difference` where a folder differs from the uninterrupted run's.
        seconds: of the processor that an uninterrupted run takes. Kills are timed by those, so
            that they spread over a run however busy the machine is.
    """

    name: str
    start: Callable[[Path], int]
    inspect: Callable[[Path], Any]
    compare: Callable[[Path], None]
    seconds: float = 0.0


def training(work: Path, workers: int) -> Job:
    """The training to kill."""
    options = ["--config-file", str(CONFIG), "DATASETS.CELL.ROOT", str(work / "data"), *MODEL]
    options += ["DATALOADER.NUM_WORKERS", str(workers)]
    whole: dict[str, Any] = {}

    def compare(folder: Path) -> None:
        found = training_outcome(folder)
        if not whole:
            whole.update(found)
        if found.keys() != whole.keys():
            raise Difference(f"{folder}: {sorted(found)}, not {sorted(whole)}")
        for name, value in whole.items():
            if not same(found[name], value):
                raise Difference(f"{folder}: {name} differs from the uninterrupted run's")
        no_half_files(folder)

    def start(folder: Path) -> int:
        return TRAIN_SCRIPT.run(["--resume", *options, "OUTPUT_DIR", str(folder)])

    def inspect(folder: Path) -> int:
        # Cut at a line's end, YAML would still be YAML.
        if (folder / "config.yaml").exists() and run_config(folder) != whole["config"]:
            raise Difference(f"{folder}: config.yaml differs from the uninterrupted run's")
        return inspect_training(folder)

    return Job("training", start, inspect, compare)


def prediction(work: Path, weights: Path) -> Job:
    """The prediction to kill."""
    config = weights.with_name("config.yaml")
    images = work / "data" / "test_release"
    arguments = ["--config-file", str(config), "--input", str(images), *OUTPUTS]
    whole: dict[str, bytes] = {}

    def start(folder: Path) -> int:
        return PREDICT_SCRIPT.run(
            [*arguments, "--output", str(folder), "MODEL.WEIGHTS", str(weights)]
        )

    def inspect(folder: Path) -> frozenset[tuple[str, int]] | None:
        """The finished images, each with the time its picture was written."""
        for name, content in contents(folder).items():
            check(folder / name)
            if not name.startswith("parts/") and whole[name] != content:
                raise Difference(f"{folder / name} differs from the uninterrupted run's")
        if (folder / "test-results.zip").exists():
            return None  # what is called again now begins anew, but for parts still there
        pictures = [folder / "overlays" / f"{p.stem}.png" for p in folder.glob("parts/*.jsonl")]
        return frozenset((p.stem, p.stat().st_mtime_ns) for p in pictures)

    def compare(folder: Path) -> None:
        found = contents(folder)
        if not whole:
            whole.update(found)
        different = [n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n)]
        if different:
            raise Difference(f"{folder}: {', '.join(sorted(different))} differ")
        no_half_files(folder)

    return Job("prediction", start, inspect, compare)


def inspect_training(folder: Path) -> int:
    """Check the files of a killed training; return the iteration of its last checkpoint, or -1."""
    weights = {path.name: check(path) for path in sorted(folder.glob("*.pth"))}
    for pattern in ("*.json", "*.yaml", "*.png"):
        for path in sorted(folder.glob(pattern)):
            check(path)
    last = folder / "last_checkpoint"
    if not last.exists():
        return -1
    name = last.read_text()
    if name not in weights:
        raise Difference(f"{last} names {name!r}, which is not there")
    iteration: int = weights[name]["iteration"]
    rows = [row["iteration"] for row in check(folder / "metrics.json")]
    if iteration not in rows:
        raise Difference(f"{folder}: checkpoint {name}, but no row of metrics for it")
    return iteration


def run_config(folder: Path) -> dict[str, Any]:
    """A run's config, but for the folder."""
    config: dict[str, Any] = check(folder / "config.yaml")
    return {key: value for key, value in config.items() if key != "OUTPUT_DIR"}


def training_outcome(folder: Path) -> dict[str, Any]:
    """What a training left, but for times."""
    files = {path.name: read_tensors(path) for path in folder.glob("*.pth")}
    for content in files.values():
        smoothed = content.get("trainer", {}).get("hooks", {}).get("MetricRows", {})
        for key in ("time", "data_time"):
            smoothed.pop(key, None)
    rows = [
        {key: value for key, value in row.items() if "time" not in key}
        for row in check(folder / "metrics.json")
    ]
    return {
        **files,
        "metrics": rows,
        "config": run_config(folder),
        "scores": check(folder / "scores.json"),
        "last": (folder / "last_checkpoint").read_text(),
    }
