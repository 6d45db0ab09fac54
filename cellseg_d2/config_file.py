"""What a YAML file of settings may hold, looked at before it is loaded.

A few lines of YAML with aliases stand for more values than fit in memory, a base may name the file
that it is the base of, or a device, or an address. The loader follows all of it; so this is refused
first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY

from .errors import ConfigError

# Ten times a complete config.
MAX_BYTES = 1 << 18
# With every alias written out; a complete config has 20,000.
MAX_CHARACTERS = 1 << 21

# What PyYAML raises for text that is no YAML, or a scalar that is not what its tag says.
YAML_ERRORS = (
    *(AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError),
    *(OSError, yaml.YAMLError),
)


def read_yaml_text(path: Path) -> str:
    """Read a YAML file whose aliases are few.

    Args:
        path: the file.

    Raises:
        ConfigError: for a file that is missing, is no YAML, is larger than ``MAX_BYTES``, or stands
            for more than ``MAX_CHARACTERS``.
    """
    _compose(path)
    return path.read_text(encoding="utf-8")


def check_bases(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Check a config file and those that its ``_BASE_`` names, which must be files as well.

    Args:
        path: the file.
        above: the files that lead to it.

    Raises:
        ConfigError: as ``read_yaml_text``, and for bases that run in a circle.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: {BASE_KEY} leads back to this file")
    root = _compose(path)
    if not isinstance(root, yaml.MappingNode):
        return  # what it is instead is refused when it is merged
    for key, value in root.value:
        if key.value == BASE_KEY:
            names = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for node in names:
                if not isinstance(node, yaml.ScalarNode):
                    raise ConfigError(f"{path}: {BASE_KEY} is no name of a file")
                name = os.path.join(path.parent, os.path.expanduser(node.value))
                check_bases(Path(name), (*above, path.resolve()))


def _compose(path: Path) -> Any:
    """The tree of a file's nodes, where an alias is the node that it stands for."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes; expected a config")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is not None and _characters(root, {}) > MAX_CHARACTERS:
            raise ConfigError(f"{path}: its aliases stand for over {MAX_CHARACTERS} characters")
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep") from error
    except YAML_ERRORS as error:
        raise ConfigError(f"{path}: {error}") from error
    return root


def _characters(node: yaml.Node, known: dict[int, int]) -> int:
    """How many characters a node stands for, about; every node is looked at once."""
    if id(node) not in known:
        known[id(node)] = MAX_CHARACTERS + 1  # until it is known: a node that holds itself
        if isinstance(node, yaml.ScalarNode):
            size = 1 + len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            parts = [part for pair in node.value for part in pair] if pairs else node.value
            size = 1 + sum(_characters(part, known) for part in parts)
        known[id(node)] = size
    return known[id(node)]
