"""The installer's refusals, and that its edits leave importable code behind."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def installer(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "install_detectron2", repository / "tools" / "install_detectron2.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fake_package(folder: Path, installer: ModuleType) -> Path:
    """A package that holds every edited text as often as the edits say."""
    package = folder / "detectron2"
    for edit in installer.EDITS:
        path = package / edit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{edit.old}\nnp.int64 np.bool_\n" * edit.count)
    return package


def test_edits_change_each_text_and_nothing_else(installer: ModuleType, tmp_path: Path) -> None:
    package = fake_package(tmp_path, installer)
    installer.apply_edits(package)
    for edit in installer.EDITS:
        text = (package / edit.file).read_text()
        assert text.count(edit.new) >= edit.count
        assert "np.int64 np.bool_" in text
        assert f"\n{edit.old}\n" not in f"\n{text}"


def test_an_edit_that_does_not_apply_is_refused(installer: ModuleType, tmp_path: Path) -> None:
    package = fake_package(tmp_path, installer)
    target = package / "structures/masks.py"
    before = (package / "data/build.py").read_text()
    target.write_text(target.read_text() + "np.bool\n")
    with pytest.raises(installer.InstallError, match=r"masks\.py.*4 times, expected 3"):
        installer.apply_edits(package)
    assert (package / "data/build.py").read_text() == before, "a refused package was changed"


def test_a_missing_file_is_refused(installer: ModuleType, tmp_path: Path) -> None:
    package = fake_package(tmp_path, installer)
    (package / "utils/visualizer.py").unlink()
    with pytest.raises(installer.InstallError, match=r"visualizer\.py: no such file"):
        installer.apply_edits(package)


def test_a_wrong_hash_is_refused(installer: ModuleType, tmp_path: Path, capsys) -> None:
    sdist = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        info = tarfile.TarInfo("x/detectron2/__init__.py")
        archive.addfile(info, io.BytesIO(b""))
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    status = installer.main(["--sdist", str(sdist), "--wheel", str(tmp_path / "wheel")])
    assert status == 1
    message = capsys.readouterr().err
    assert digest in message and installer.SDIST_SHA256 in message
    assert not (tmp_path / "wheel").exists()


def test_a_missing_sdist_is_refused(installer: ModuleType, tmp_path: Path, capsys) -> None:
    status = installer.main(["--sdist", str(tmp_path / "no.tar.gz"), "--wheel", str(tmp_path)])
    assert status == 1
    assert "no.tar.gz" in capsys.readouterr().err


def test_the_installed_detectron2_passes_the_probe(installer: ModuleType) -> None:
    assert installer.probe().startswith("0.6")


def test_a_broken_detectron2_is_named(installer: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(installer, "_PROBE", "raise ImportError('no such operator') # {modules}")
    with pytest.raises(installer.InstallError, match="no such operator"):
        installer.probe()
