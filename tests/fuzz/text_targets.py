"""The fuzzed readers of text: submissions, id maps, configs and cached annotations."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import tifffile

from cellseg_d2.config import load_config
from cellseg_d2.data.annotation_cache import AnnotationCache
from cellseg_d2.data.id_map import check_in_id_map, missing_images, read_id_map
from cellseg_d2.data.instances import read_instances
from cellseg_d2.data.layout import scan_root
from cellseg_d2.engine.ablation_file import read_ablation
from cellseg_d2.errors import CellDataError, ConfigError
from cellseg_d2.export.image_index import IndexedImage
from cellseg_d2.export.submission_check import check_submission
from cellseg_d2.export.submission_reader import read_submission

from .mutation import mutate_bytes, mutate_json
from .targets import REPOSITORY, Target, refusal

SIZE = (20, 30)
_ENTRIES = [
    {"file_name": f"{name}.tif", "id": number, "height": SIZE[0], "width": SIZE[1]}
    for number, name in enumerate(("a", "b", "linked", "c"), start=1)
]


def to_json(value: Any) -> bytes:
    """JSON text; half characters, which UTF-8 has no bytes for, are escaped."""
    return json.dumps(value).encode()


def zipped(content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of `test-results.json`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(zipfile.ZipInfo("test-results.json"), content, compression)
    return file.getvalue()


def predictions() -> list[dict[str, Any]]:
    """Six sound predictions."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    found = []
    for index in range(6):
        mask = (rows - 4 - 2 * index) ** 2 + (columns - 5 - 3 * index) ** 2 <= 12
        rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
        found.append(
            {
                "image_id": 1 + index % 2,
                "bbox": mask_util.toBbox(rle).tolist(),
                "score": 0.9 - index / 10,
                "category_id": 1 + index % 4,
                "segmentation": segmentation,
            }
        )
    return found


class SubmissionTarget(Target):
    """`check_submission`, whose faults are its refusal, and `read_submission`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        text = to_json(predictions())
        self.seeds = {"text.json": text, "none.json": b"[]"}
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self.seeds[f"{kind}.zip"] = zipped(text, kind)
        self._id_map = folder / "map.json"
        self._id_map.write_bytes(to_json(_ENTRIES))
        self._images = {n: IndexedImage(n, str(n), SIZE, None) for n in range(1, 5)}

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        others = list(self.seeds.values())
        if name.endswith(".json") and rng.random() < 0.3:
            return mutate_bytes(rng, data, others)
        if name.endswith(".zip") and rng.random() < 0.5:
            return mutate_bytes(rng, data, others)
        content = to_json(mutate_json(rng, predictions()))
        if rng.random() < 0.2:
            content = mutate_bytes(rng, content, others)
        return content if name.endswith(".json") else zipped(content, int(Path(name).stem))

    def check(self, path: Path) -> bool:
        report = check_submission(path, id_map=self._id_map)
        assert all(isinstance(line, str) for line in report.lines())
        try:
            by_image, faulty = read_submission(path, self._images, 4)
        except CellDataError as error:
            assert report.faults, f"only read_submission found: {error}"
            return refusal(error)
        assert report.faults or not faulty
        # What passed the strict decoder is safe to decode.
        for instances in by_image.values():
            for rle in instances.pred_masks.rles:
                assert 0 < mask_util.decode(rle).sum() <= SIZE[0] * SIZE[1]
        return not report.faults


class IdMapTarget(Target):
    """`read_id_map`, and `check_in_id_map` for what it holds, links among it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        images = folder / "images"
        images.mkdir()
        (images / "a.tif").touch()
        (folder / "outside.tif").touch()
        (images / "linked.tif").symlink_to("../outside.tif")
        (images / "c.tif").symlink_to("c.tif")
        self._images = images
        many = [{**_ENTRIES[0], "file_name": f"{n}.tif", "id": n} for n in range(150)]
        self.seeds = {"map.json": to_json(_ENTRIES), "long.json": to_json(many)}

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        if rng.random() < 0.7:
            data = to_json(mutate_json(rng, _ENTRIES))
        if rng.random() < 0.4:
            data = mutate_bytes(rng, data, list(self.seeds.values()))
        return data

    def check(self, path: Path) -> bool:
        try:
            id_map = read_id_map(path)
        except CellDataError as error:
            return refusal(error)
        inside = 0
        for name, entry in id_map.items():
            assert Path(entry.file_name).name == entry.file_name and name
            entry.file_name.encode()  # it can be printed
            try:
                check_in_id_map(self._images / entry.file_name, SIZE, id_map)
                inside += 1
            except CellDataError as error:
                refusal(error)
        files = [*self._images.iterdir()]
        assert len(missing_images(files, id_map)) <= len(id_map)
        return True


_YAML = (
    *("!!python/object/apply:os.system ['touch exploded']", "!!python/name:os.system", "!!python/"),
    *("!!python/object/new:os.mkdir [exploded]", "!!python/module:antigravity", "!!set {a, b}"),
    *("!!binary abc", "!!timestamp x", "!!int x", "!!float x", "!!null x", "!!omap [a]", "!x y"),
    *("&a [*a]", "&a {k: *a}", "*a", "&a", "<<: *a", "<<: [1]", "<<", "? [a]", "? {a: b}", "- -"),
    *(".nan", ".inf", "-.inf", "1e999", "0x" + "f" * 300, "1" * 5000, "1:60:60", "2001-99-99"),
    *("[", "]", "{", "}", "'", '"', "|", ">", "%YAML 9.9", "---", "...", "#", "\t", "\0", "\x85"),
    *("null", "true", "[]", "{}", "[1, 2]", "[[]]", "-1", "0", "1.5", "''", "(1,", "(1, 2)", "x"),
    *("_BASE_: case.yaml", "_BASE_: ./case.yaml", "_BASE_: missing.yaml", "_BASE_: /dev/zero"),
    *("_BASE_: [Base-CellSeg.yaml, case.yaml]", "_BASE_: ..", "_BASE_: {a: 1}", "_BASE_: 3"),
    *("_BASE_: ~", "_BASE_: https://localhost/x.yaml", "_BASE_: detectron2://x", "VERSION: 1"),
    *("VERSION: 0", "VERSION: -3", "VERSION: 99", "VERSION: x", "VERSION: 1.5", "[" * 600),
)


class ConfigTarget(Target):
    """`load_config` and `read_ablation`, both of every file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shutil.copytree(REPOSITORY / "configs", folder / "configs")
        for path in (folder / "configs").rglob("*.yaml"):
            self.seeds[f"{path.parent.name}_{path.name}"] = path.read_bytes()
        self.seeds["ablations_anchors.yaml"] = (
            b"base: ../mask_rcnn_R_18_FPN_small.yaml\nseeds: [1]\noptions: &a {SEED_OF: 3}\n"
            b"variants:\n  x: {options: &b {<<: *a}}\n  y: {options: {<<: *b, A: 1}}\n"
        )
        self.seeds["upgraded.yaml"] = b"VERSION: 1\nMODEL: {RPN: {NMS_THRESH: 0.6}}\n"

    def path(self, name: str) -> Path:
        # In its kind's folder: the files it names are named from there.
        kind = "configs/ablations" if name.startswith("ablations") else "configs"
        return self.folder / kind / "case.yaml"

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        if rng.random() < 0.25:
            return mutate_bytes(rng, data, list(self.seeds.values()))
        lines = data.decode().split("\n")
        for _ in range(rng.choice((1, 1, 2, 4))):
            index = rng.randrange(len(lines))
            line = lines[index]
            indent = line[: len(line) - len(line.lstrip())]
            key = line.split(":")[0]
            kind = rng.random()
            if kind < 0.45:
                lines[index] = f"{key}: {rng.choice(_YAML)}"
            elif kind < 0.65:
                lines.insert(index, indent + rng.choice(_YAML))
            elif kind < 0.75:
                lines.insert(rng.randrange(len(lines) + 1), line)
            elif kind < 0.85:
                del lines[index]
                lines = lines or [""]
            else:
                lines[index] = " " * rng.choice((1, 2, 4)) + line
        return "\n".join(lines).encode()

    def check(self, path: Path) -> bool:
        outcomes = []
        for read in (load_config, read_ablation):
            try:
                read(path)
                outcomes.append(True)
            except ConfigError as error:
                assert len(str(error)) < 100_000, "an endless message"
                outcomes.append(refusal(error))
        return any(outcomes)


class CacheTarget(Target):
    """`AnnotationCache.load`, whose refusal is None. Most files have the right checksum."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = folder / "root" / "a"
        source.mkdir(parents=True)
        tifffile.imwrite(source / "image.tif", np.zeros((*SIZE, 3), np.uint8), photometric="rgb")
        ids = np.zeros(SIZE, np.uint16)
        ids[2:5, 3:9], ids[10:18, 0:30] = 4, 7
        for number in (1, 3):
            tifffile.imwrite(source / f"class{number}.tif", ids)
        (image,) = scan_root(folder / "root").folders
        self._cache = AnnotationCache(folder / "cache", "ids", 1)
        key = self._cache.key(image)
        assert key is not None
        self._key = key
        self._cache.store(key, read_instances(image))
        (self._entry,) = (folder / "cache").iterdir()
        self.seeds = {"entry.json": self._entry.read_bytes()}

    def path(self, name: str) -> Path:
        return self._entry

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return mutate_bytes(rng, data, [data])
        _, line, body = data.split(b"\n", 2)
        if kind < 0.7:
            header = json.loads(line)
            layers = mutate_json(rng, {k: v for k, v in header.items() if k != "key"})
            whole = isinstance(layers, dict)
            line = to_json({"key": header["key"], **layers} if whole else layers)
        if kind > 0.5:
            body = mutate_bytes(rng, body, [body])
        content = line + b"\n" + body
        return hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    def check(self, path: Path) -> bool:
        instances = self._cache.load(self._key)
        if instances is None:
            return False
        for layer in instances.layers:
            assert len(layer.ids) == len(layer.boxes) == len(layer.areas) == len(layer.counts)
            if len(layer.ids):
                assert layer.ids.min() > 0 and (layer.boxes[:, :2] < layer.boxes[:, 2:]).all()
                assert layer.boxes[:, 2].max() <= instances.width
                assert layer.boxes[:, 3].max() <= instances.height
        return True
