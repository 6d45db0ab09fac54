"""Loading into models: what must fit, what may be missing, and what is written."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from cellseg_d2 import CellDataError, ConfigError, load_config
from cellseg_d2.checkpoint import CellCheckpointer
from cellseg_d2.inference import CellPredictor


def config(repository: Path, *options: object) -> CfgNode:
    """A small R-18-FPN Mask R-CNN, with norms that can be chosen."""
    return load_config(
        repository / "configs" / "mask_rcnn_R_18_FPN_small.yaml",
        [
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.DEVICE", "cpu"),
            *options,
        ],
    )


def save(model: nn.Module, path: Path) -> str:
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def load_whole(model: nn.Module, path: str) -> None:
    CellCheckpointer(model, complete=True).load(path, checkpointables=[])


def load_start(model: nn.Module, path: str) -> None:
    CellCheckpointer(model).load(path, checkpointables=[])


# With the name of a file a config keeps its frozen norms; the file is not read here.
PRETRAINED = ("MODEL.WEIGHTS", "weights/some.pkl")


def test_a_models_own_weights_load_whole(repository: Path, tmp_path: Path) -> None:
    cfg = config(repository)
    source, model = build_model(cfg), build_model(cfg)
    load_whole(model, save(source, tmp_path / "a.pth"))
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("saved", "built", "message"),
    [
        # Other classes, other depth, other norms, attention on one side only.
        (
            ["DATASETS.CELL.CLASS_NAMES", ["a", "b"], "MODEL.ROI_HEADS.NUM_CLASSES", 2],
            [],
            r"6 of another shape \(.*cls_score.*: \(3, 32\) in the file, \(5, 32\)",
        ),
        (["MODEL.FPN.OUT_CHANNELS", 32], [], r"of another shape \(backbone\.fpn_lateral2"),
        (["MODEL.RESNETS.NORM", "GN"], [], r"40 missing in the file \(.*running_mean"),
        (
            ["MODEL.RESNETS.NORM", "GN"],
            [*PRETRAINED, "MODEL.RESNETS.NORM", "FrozenBN"],
            r"40 missing in the file \(.*running_mean",
        ),
        ([], ["MODEL.RESNETS.NORM", "GN"], r"unknown to the model \(.*running_mean"),
        (["MODEL.BACKBONE.NAME", "build_cbam_resnet_fpn_backbone"], [], r"unknown.*cbam_res2"),
        ([], ["MODEL.BACKBONE.NAME", "build_cbam_resnet_fpn_backbone"], r"missing.*cbam_res2"),
        ([], ["MODEL.RESNETS.DEPTH", 34], r"missing in the file \(backbone\.bottom_up"),
        (["MODEL.RESNETS.DEPTH", 34], [], r"unknown to the model \(backbone\.bottom_up"),
    ],
)
def test_other_weights_are_refused_and_not_loaded(
    repository: Path, tmp_path: Path, saved, built, message: str
) -> None:
    path = save(build_model(config(repository, *saved)), tmp_path / "other.pth")
    model = build_model(config(repository, *built))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CellDataError, match=rf"(?s)other\.pth: found weights of.*{message}") as e:
        load_whole(model, path)
    assert "use the config that belongs to the weights" in str(e.value)
    assert len(str(e.value)) < 900
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_heads_that_are_switched_off_may_stay_in_the_file(repository: Path, tmp_path: Path) -> None:
    source = build_model(config(repository))
    source.center_boundary_head = nn.Linear(2, 2)
    path = save(source, tmp_path / "a.pth")
    load_whole(build_model(config(repository)), path)
    load_whole(build_model(config(repository, "MODEL.MASK_ON", False)), path)


def test_predictor_refuses_them_too(repository: Path, tmp_path: Path) -> None:
    path = save(build_model(config(repository, "MODEL.RESNETS.NORM", "GN")), tmp_path / "a.pth")
    with pytest.raises(CellDataError, match=r"a\.pth: found weights of another model"):
        CellPredictor(config(repository, "MODEL.WEIGHTS", path))
    for weights, message in (("", "add MODEL.WEIGHTS"), ("no.pth", "no.pth: found no such file")):
        with pytest.raises(CellDataError, match=message):
            CellPredictor(config(repository, "MODEL.WEIGHTS", weights))


# Weights to start from


def write_backbone(model: nn.Module, path: Path, *, statistics: bool = True) -> str:
    """The ResNet alone, under names that match by their ends, as the model zoo's are."""
    prefix = "backbone.bottom_up."
    arrays = {
        name.removeprefix(prefix): value.numpy()
        for name, value in model.state_dict().items()
        if name.startswith(prefix) and (statistics or "running_" not in name)
    }
    content = {"model": arrays, "__author__": "test", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    return str(path)


FROZEN = (*PRETRAINED, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2)


@pytest.mark.parametrize("name", ["build_resnet_fpn_backbone", "build_cbam_resnet_fpn_backbone"])
def test_training_starts_from_a_backbone(repository: Path, tmp_path: Path, name: str) -> None:
    source = build_model(config(repository, *FROZEN))
    for value in source.backbone.bottom_up.state_dict().values():
        value.uniform_(0.5, 1.5)
    path = write_backbone(source, tmp_path / "R-18.pkl")
    model = build_model(config(repository, *FROZEN, "MODEL.BACKBONE.NAME", name))
    load_start(model, path)
    for name, value in source.backbone.bottom_up.state_dict().items():
        assert torch.equal(model.backbone.bottom_up.state_dict()[name], value), name
    with pytest.raises(CellDataError, match="missing in the file"):
        load_whole(model, path)


def test_training_starts_from_a_detector_of_other_classes(repository: Path, tmp_path: Path) -> None:
    two = ["DATASETS.CELL.CLASS_NAMES", ["a", "b"], "MODEL.ROI_HEADS.NUM_CLASSES", 2]
    source, model = build_model(config(repository, *two)), build_model(config(repository))
    fresh = model.roi_heads.box_predictor.cls_score.weight.clone()
    load_start(model, save(source, tmp_path / "a.pth"))
    assert torch.equal(model.backbone.fpn_lateral3.weight, source.backbone.fpn_lateral3.weight)
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, fresh)


def test_training_does_not_start_from_another_backbone(repository: Path, tmp_path: Path) -> None:
    small = build_model(config(repository, *FROZEN))
    path = write_backbone(small, tmp_path / "R-18.pkl")
    frozen = build_model(config(repository, *FROZEN, "MODEL.RESNETS.DEPTH", 34))
    with pytest.raises(CellDataError, match=r"R-18\.pkl.*missing in the file but frozen"):
        load_start(frozen, path)
    deep = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    with pytest.raises(CellDataError, match=r"of another shape in the backbone"):
        load_start(build_model(config(repository, *deep)), path)
    other = {"model": {"conv.weight": torch.ones(3)}}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CellDataError, match=r"other\.pth.*nothing of the file fits"):
        load_start(small, str(tmp_path / "other.pth"))
    gn = save(build_model(config(repository, "MODEL.RESNETS.NORM", "GN")), tmp_path / "gn.pth")
    with pytest.raises(CellDataError, match=r"40 missing in the file but frozen"):
        load_start(small, gn)


def test_caffe2_files_have_no_statistics(repository: Path, tmp_path: Path) -> None:
    source = build_model(config(repository, *FROZEN))
    for value in source.backbone.bottom_up.state_dict().values():
        value.uniform_(0.5, 1.5)
    blobs = {}
    for name, value in source.backbone.bottom_up.state_dict().items():
        if "running_" in name:
            continue
        blob = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
        blob = blob.replace(".shortcut", ".branch1").replace(".norm", "_bn")
        blob = blob.replace(".conv1", ".branch2a").replace(".conv2", ".branch2b")
        kind = {"weight": "s", "bias": "b"} if "bn" in blob else {"weight": "w"}
        layer, _, end = blob.rpartition(".")
        blobs[f"{layer}.{kind[end]}".replace(".", "_")] = value.numpy()
    blobs |= {"conv1_w_momentum": np.ones(1, np.float32), "fc1000_w": np.ones((9, 3), np.float32)}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    model, upstream = build_model(config(repository, *FROZEN)), build_model(
        config(repository, *FROZEN)
    )
    load_start(model, str(path))
    DetectionCheckpointer(upstream).load(str(path))
    for name, value in upstream.backbone.bottom_up.state_dict().items():
        assert torch.equal(model.backbone.bottom_up.state_dict()[name], value), name
    loaded = model.backbone.bottom_up.res3[0].conv1
    assert torch.equal(loaded.norm.weight, source.backbone.bottom_up.res3[0].conv1.norm.weight)
    # Of another author the same gap is one.
    bare = write_backbone(source, tmp_path / "bare.pkl", statistics=False)
    with pytest.raises(CellDataError, match=r"bare\.pkl.*40 missing in the file but frozen"):
        load_start(model, bare)


def test_names_that_match_two_parameters_are_refused(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    content = {"model": {"weight": np.ones((2, 2), np.float32)}, "__author__": "x"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content | {"matching_heuristics": True}))
    with pytest.raises(CellDataError, match=r"a\.pkl.*one checkpoint key to multiple"):
        load_start(model, str(tmp_path / "a.pkl"))


# Checkpoints


class Counter:
    """Something that a checkpoint holds beside the model."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def test_saved_checkpoints_are_upstreams(tmp_path: Path) -> None:
    model, counter = nn.BatchNorm2d(3), Counter(5)
    CellCheckpointer(model, str(tmp_path / "ours"), counter=counter).save("m", iteration=7)
    (tmp_path / "theirs").mkdir()
    DetectionCheckpointer(model, str(tmp_path / "theirs"), counter=counter).save("m", iteration=7)
    for name in ("last_checkpoint", "m.pth"):
        assert (tmp_path / "ours" / name).is_file()
    ours, theirs = (torch.load(tmp_path / name / "m.pth") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() == {"model", "counter", "iteration"}
    assert ours["model"].keys() == theirs["model"].keys()
    assert ours["model"]._metadata == theirs["model"]._metadata
    again, fresh = Counter(0), nn.BatchNorm2d(3)
    checkpointer = CellCheckpointer(fresh, str(tmp_path / "theirs"), counter=again)
    rest = checkpointer.resume_or_load("", resume=True)
    assert again.value == 5 and rest["iteration"] == 7
    assert checkpointer.get_checkpoint_file().endswith("m.pth")


def test_resuming_needs_the_whole_model_and_its_file(tmp_path: Path) -> None:
    CellCheckpointer(nn.Linear(2, 3, bias=False), str(tmp_path)).save("m")
    with pytest.raises(CellDataError, match=r"m\.pth.*1 missing in the file \(bias\)"):
        CellCheckpointer(nn.Linear(2, 3), str(tmp_path)).resume_or_load("", resume=True)
    (tmp_path / "m.pth").unlink()
    with pytest.raises(CellDataError, match=r"last_checkpoint: found .* not there, 'm\.pth'"):
        CellCheckpointer(nn.Linear(2, 3), str(tmp_path)).resume_or_load("", resume=True)


def test_weights_alone_are_not_resumed_from(tmp_path: Path) -> None:
    saved, model = nn.Linear(2, 3), nn.Linear(2, 3)
    CellCheckpointer(saved, str(tmp_path)).save_weights("model_best", saved.state_dict())
    (tmp_path / "last_checkpoint").write_text("model_best.pth")
    checkpointer = CellCheckpointer(model, str(tmp_path), trainer=Counter(0))
    with pytest.raises(CellDataError, match=r"model_best\.pth: .*a resumed run needs \(trainer\)"):
        checkpointer.resume_or_load("", resume=True)
    assert not torch.equal(model.weight, saved.weight)
    checkpointer.resume_or_load(str(tmp_path / "model_best.pth"), resume=False)
    assert torch.equal(model.weight, saved.weight)


def test_a_state_of_another_config_is_told_in_its_own_words(tmp_path: Path) -> None:
    class Picky(Counter):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise ConfigError("set KEY")

    CellCheckpointer(nn.Linear(2, 3), str(tmp_path), counter=Counter(1)).save("m")
    checkpointer = CellCheckpointer(nn.Linear(2, 3), str(tmp_path), counter=Picky(0))
    with pytest.raises(ConfigError, match="^set KEY$"):
        checkpointer.resume_or_load("", resume=True)


def test_too_little_memory_is_no_fault_of_the_checkpoint(tmp_path: Path, monkeypatch) -> None:
    class Large(Counter):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    CellCheckpointer(nn.Linear(2, 3), str(tmp_path), counter=Counter(1)).save("m")
    checkpointer = CellCheckpointer(nn.Linear(2, 3), str(tmp_path), counter=Large(0))
    with pytest.raises(torch.OutOfMemoryError, match="^CUDA out of memory$"):
        checkpointer.resume_or_load("", resume=True)


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    model = nn.Linear(2, 3)
    checkpointer = CellCheckpointer(model, str(tmp_path))
    checkpointer.save("m")
    before = (tmp_path / "m.pth").read_bytes()

    def torn(data: object, file: object) -> None:
        file.write(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    for name in ("m", "n"):
        with pytest.raises(OSError, match="disk full"):
            checkpointer.save(name)
    assert (tmp_path / "m.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "m.pth"]
    assert checkpointer.get_checkpoint_file() == os.path.join(tmp_path, "m.pth")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    checkpointer = CellCheckpointer(nn.Linear(1000, 1000), str(tmp_path))
    part = tmp_path / "m.pth.part"
    for _ in range(2):
        # The system's own device for it; the half of a file that is removed is this link.
        part.symlink_to("/dev/full")
        with pytest.raises(OSError) as error:
            checkpointer.save("m")
        assert isinstance(error.value.__cause__, OSError)
        assert error.value.__cause__.errno == errno.ENOSPC
        message = str(error.value)
        assert f"{tmp_path / 'm.pth'}: the disk does not take the file, of about 4 MiB" in message
        if (tmp_path / "k.pth").exists():
            assert "go on with --resume from k.pth" in message
        else:
            assert "there is no checkpoint yet" in message
        assert not part.is_symlink()
        checkpointer.save("k")
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m\.pth: the disk does not take"):
        checkpointer.save_weights("m", checkpointer.model.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.pth", "last_checkpoint"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "k.pth")


def test_weights_alone_are_for_predictions(tmp_path: Path) -> None:
    checkpointer = CellCheckpointer(nn.Linear(2, 3), str(tmp_path))
    checkpointer.save("m")
    zeros = {name: torch.zeros_like(v) for name, v in checkpointer.model.state_dict().items()}
    checkpointer.save_weights("best", zeros, score=1.5)
    assert (tmp_path / "last_checkpoint").read_text() == "m.pth"
    model = nn.Linear(2, 3)
    rest = CellCheckpointer(model, complete=True).load(str(tmp_path / "best.pth"), [])
    assert rest == {"score": 1.5} and not model.weight.any()


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no tensor")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="no tensor"):
        CellCheckpointer(nn.Linear(2, 3), str(tmp_path)).save("m")
    assert not list(tmp_path.iterdir())


def test_nothing_is_saved_without_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    CellCheckpointer(nn.Linear(2, 3)).save("m")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_downloaded(tmp_path: Path, monkeypatch) -> None:
    def fail(path: str) -> str:
        raise OSError("no network")

    checkpointer = CellCheckpointer(nn.Linear(2, 3))
    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", fail)
    with pytest.raises(CellDataError, match=r"https://a\.b/c\.pkl: found .*no network"):
        checkpointer.load("https://a.b/c.pkl")
