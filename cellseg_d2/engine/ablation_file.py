"""The YAML file that says which trainings an ablation compares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..config_file import YAML_ERRORS, read_yaml_text
from ..errors import ConfigError

# Set for each run by the tool itself.
RESERVED_OPTIONS = ("OUTPUT_DIR", "SEED")

_KEYS = ("base", "seeds", "options", "forms", "splits", "evaluations", "reference", "variants")
# Names become folders, and no part of one can be mistaken for a config key.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_SEED_LIMIT = 2**32
_SCALARS = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: as in the file.
        config: the config file, which exists.
        options: config keys and values in turn, as text.
    """

    name: str
    config: Path
    options: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """One way to hold out images.

    Attributes:
        name: as in the file; "" where the file names no splits.
        options: config keys and values in turn, as text.
    """

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """One more way to evaluate what each training made.

    Attributes:
        name: as in the file.
        options: config keys and values in turn, as text, over those of the run.
    """

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Attributes:
        name: the file's stem.
        form: the form that was chosen; "" is the full one.
        seeds: each variant is trained once with each.
        variants: in the order of the file.
        splits: each variant is trained on each, with every seed.
        evaluations: each finished run is evaluated once more with each.
        reference: name of the variant that each other one is compared with, pair by pair of the
            same split and seed; "" for none.
    """

    name: str
    form: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    splits: tuple[Split, ...] = (Split("", ()),)
    evaluations: tuple[Evaluation, ...] = ()
    reference: str = ""


def read_ablation(path: str | PathLike[str], form: str = "") -> Ablation:
    """Read an ablation's YAML file.

    ::

        base: ../mask_rcnn_R_18_FPN_small.yaml  # config of the variants that name none
        seeds: [1, 2]
        options: {SOLVER.MAX_ITER: 300}         # for all variants
        forms:                                  # others than the full one, each by its name
          cpu: {seeds: [1], options: {SOLVER.MAX_ITER: 20}}
        splits:                                 # may be left out
          a: {options: {DATASETS.CELL.VAL_NAMES: [tile_1, tile_2]}}
          b: {options: {DATASETS.CELL.VAL_NAMES: [tile_3, tile_4]}}
        evaluations:                            # may be left out
          turned: {options: {TEST.TTA.ENABLED: True}}
        reference: sgd                          # may be left out: what the others are compared with
        variants:
          sgd: {options: {SOLVER.OPTIMIZER: SGD}}
          v2: {config: ../v2.yaml, forms: {cpu: {options: {MODEL.FPN.OUT_CHANNELS: 64}}}}

    Files are named from the YAML file's folder. What is more particular prevails: the options of a
    variant in a form, then the variant's, the form's, and those for all. A split's prevail over
    these.

    Args:
        path: the file.
        form: the form to take; "" is the full one.

    Raises:
        ConfigError: for a file that is missing or no such YAML, a key that is unknown or there
            twice, a missing config, an unknown form or reference, or seeds or names that cannot be
            used.
    """
    path = Path(path)
    try:
        root = _mapping(_load(path), f"{path}", _KEYS)
        forms = {
            name: _mapping(value, f"{path}: forms.{name}", ("seeds", "options"))
            for name, value in _mapping(root.get("forms", {}), f"{path}: forms").items()
        }
        if form and form not in forms:
            raise ConfigError(f"{path}: no form {form!r}; the file has {_list(forms)}")
        in_forms = {name: _options(v, f"{path}: forms.{name}") for name, v in forms.items()}
        shared = [_options(root, f"{path}"), in_forms.get(form, {})]
        seeds = _seeds(root, f"{path}")
        for name, value in forms.items():
            own = _seeds(value, f"{path}: forms.{name}", default=seeds)
            seeds = own if name == form else seeds
        variants = []
        for name, value in _folders(root, "variants", f"{path}: variants").items():
            where = f"{path}: variants.{name}"
            value = _mapping(value, where, ("config", "options", "forms"))
            config = _config(value.get("config", root.get("base")), where, path.parent)
            levels = [*shared, *_variant_options(value, where, forms, form)]
            options = {key: text for level in levels for key, text in level.items()}
            words = tuple(word for pair in options.items() for word in pair)
            variants.append(Variant(name, config, words))
        splits = [Split(*item) for item in _named_options(root, "splits", f"{path}: splits")]
        evaluations = [
            Evaluation(*item)
            for item in _named_options(root, "evaluations", f"{path}: evaluations")
        ]
        reference = root.get("reference", "")
        if "reference" in root and reference not in [variant.name for variant in variants]:
            raise ConfigError(
                f"{path}: reference: no variant {reference!r}; the file has "
                f"{_list(variant.name for variant in variants)}"
            )
        return Ablation(
            path.stem,
            form,
            seeds,
            tuple(variants),
            tuple(splits) or Ablation.splits,
            tuple(evaluations),
            reference,
        )
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep") from error


class _Loader(yaml.SafeLoader):
    """The safe loader, which builds plain values only; a key that is there twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> Any:
    text = read_yaml_text(path)
    try:
        # A subclass of SafeLoader: what yaml.safe_load does.
        return yaml.load(text, _Loader)
    except YAML_ERRORS as error:
        raise ConfigError(f"{path}: {error}") from error


def _variant_options(
    value: Mapping[str, Any], where: str, forms: Mapping[str, Any], form: str
) -> list[dict[str, str]]:
    """A variant's own options, and those it has in the chosen form."""
    own_forms = {
        name: _mapping(item, f"{where}.forms.{name}", ("options",))
        for name, item in _mapping(value.get("forms", {}), f"{where}.forms").items()
    }
    for name in own_forms:
        if name not in forms:
            raise ConfigError(f"{where}.forms: no form {name!r}; the file has {_list(forms)}")
    in_forms = {name: _options(item, f"{where}.forms.{name}") for name, item in own_forms.items()}
    return [_options(value, where), in_forms.get(form, {})]


def _config(value: Any, where: str, folder: Path) -> Path:
    if value is None:
        raise ConfigError(f"{where}: no config; name one here or as base")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: config is {value!r}; expected the name of a file")
    file = folder / value
    if not file.is_file():
        raise ConfigError(f"{where}: config {file}: no such file")
    return file.resolve()


def _mapping(value: Any, where: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Check that a value is a mapping of text to something, with known keys only."""
    if value is None:  # "variant:" with nothing after it
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is {value!r}; expected keys and values")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: key {key!r} is no text")
        if known is not None and key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {_list(known)}")
    return value


def _options(value: Mapping[str, Any], where: str) -> dict[str, str]:
    options = _mapping(value.get("options", {}), f"{where}: options")
    for key in options:
        if key in RESERVED_OPTIONS:
            raise ConfigError(f"{where}: options: {key} is set for each run by the tool")
    return {key: _text(item, f"{where}: options: {key}") for key, item in options.items()}


def _text(value: Any, where: str) -> str:
    """Return a value as it stands on a command line, where the config reads it back."""
    if not (isinstance(value, _SCALARS) or _is_list(value)):
        raise ConfigError(
            f"{where} is {value!r}; expected a number, text, or a list "
            "(write keys in full, as SOLVER.MAX_ITER)"
        )
    return value if isinstance(value, str) else repr(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, _SCALARS) or _is_list(v) for v in value)


def _seeds(
    value: Mapping[str, Any], where: str, default: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    if "seeds" not in value and default is not None:
        return default
    seeds = value.get("seeds")
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int and 0 <= seed < _SEED_LIMIT for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise ConfigError(
            f"{where}: seeds is {seeds!r}; expected a list of different whole numbers from 0, "
            "as [1, 2]"
        )
    return tuple(seeds)


def _named_options(
    root: Mapping[str, Any], key: str, where: str
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the names under a key and their options; nothing where the key is not there."""
    if key not in root:
        return []
    found = []
    for name, value in _folders(root, key, where).items():
        options = _options(_mapping(value, f"{where}.{name}", ("options",)), f"{where}.{name}")
        found.append((name, tuple(word for pair in options.items() for word in pair)))
    return found


def _folders(root: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the mapping under a key, at least one entry whose names can be those of folders."""
    entries = _mapping(root.get(key, {}), where)
    if not entries:
        raise ConfigError(f"{where}: none; expected at least one")
    folders: dict[str, str] = {}
    for name in entries:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} cannot name a folder; use letters, digits, _+-")
        # Some file systems take them for one folder.
        if name.lower() in folders:
            raise ConfigError(f"{where}: {folders[name.lower()]!r} and {name!r} are one name")
        folders[name.lower()] = name
    return entries


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
