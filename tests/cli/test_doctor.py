"""``flowfuse doctor``: what it finds, and what it says where something is missing."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from flowfuse import __version__
from flowfuse.cli import doctor
from flowfuse.ops import extension

PROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
METADATA = """Metadata-Version: 2.1
Name: flowfuse
Version: {version}
Requires-Dist: torch>=2.11
Requires-Dist: absent-package
Requires-Dist: jsonargparse[signatures]
Requires-Dist: tensorboard; extra == "train"
Requires-Dist: other-absent>1; extra == "view"
Requires-Dist: of-old-python; python_version < "3.9" and extra == "view"
Requires-Dist: of-new-python; python_version < "4.0" and extra == "view"
Requires-Dist: flowfuse[train,view]; extra == "dev"
Provides-Extra: train
Provides-Extra: view
Provides-Extra: dev
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Let the metadata of flowfuse be of this version, whatever is installed."""

    def put(version: str) -> None:
        folder = tmp_path / "flowfuse-1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(METADATA.format(version=version))
        monkeypatch.syspath_prepend(tmp_path)

    return put


def find(name: str) -> doctor.Finding:
    (found,) = [finding for finding in doctor.examine() if finding.name == name]
    return found


def test_every_part_is_reported(capsys):
    doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    parts = [line for line in lines if line and not line.startswith(" ")]
    assert parts == ["versions", "operators", "devices", "codecs", "extras"]
    text = "\n".join(lines)
    assert re.search(rf"ok  flowfuse +{re.escape(__version__)}, ", text)
    assert re.search(r"ok  cpu +.* cores, \d+ threads, has (no )?bfloat16", text)


def test_packages_come_from_the_metadata(install):
    install(__version__)
    assert doctor.requirements(None) == ["torch", "absent-package", "jsonargparse"]
    assert doctor.requirements("dev") == ["tensorboard", "other-absent", "of-new-python"]
    assert find("torch") == ("versions", "torch", doctor.GOOD, metadata.version("torch"), "")
    absent = find("absent-package")
    assert (absent.state, absent.remedy) == (doctor.BROKEN, "pip install absent-package")
    extra = find("view")
    assert extra.state == doctor.MISSING and extra.text.endswith(
        "missing: other-absent, of-new-python"
    )
    assert extra.remedy == 'pip install "flowfuse[view]"'


def test_one_opencv_is_good_and_two_are_not(monkeypatch):
    there: dict[str, str] = {}
    monkeypatch.setattr(doctor, "_installed", there.get)
    headless, other = "opencv-python-headless", "opencv-contrib-python"
    absent = doctor._package("versions", headless, doctor.BROKEN)
    assert (absent.state, absent.remedy) == (doctor.BROKEN, f"pip install {headless}")
    there[other] = "5.0"
    found = doctor._package("versions", headless, doctor.BROKEN)
    assert found[1:] == (other, doctor.GOOD, "5.0", "")
    there[headless] = "4.9"
    found = doctor._package("versions", headless, doctor.BROKEN)
    assert found.state == doctor.BROKEN
    assert found.text == f"{headless} and {other} overwrite each other's files: keep one"
    assert found.remedy == f"pip uninstall {headless} {other} && pip install {headless}"


def test_an_installation_of_another_version_is_broken(install, capsys):
    install("0.0.1")
    assert find("installed").text == f"as 0.0.1, not as {__version__}"
    assert doctor.main([]) == 1
    assert re.search(r"!!  installed .*\n +-> install it again", capsys.readouterr().out)


def test_missing_operators_are_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(extension, "LIBRARY", None)
    found = find("extension")
    assert found.state == doctor.MISSING and "not built" in found.text
    assert "FLOWFUSE_EXTENSION=1 pip install" in found.remedy


def test_a_gpu_without_kernels_is_broken(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "H200", 139 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    with extension.kernels_on("cpu"):
        found = find("cuda:0")
    assert found.state == doctor.BROKEN and found.text.startswith("H200, 139 GiB, sm_90, but")
    assert "FLOWFUSE_CUDA=1" in found.remedy
    with extension.kernels_on("cpu", "cuda"):
        assert find("cuda:0").state == doctor.GOOD


def test_a_codec_that_fails_does_not_end_the_report(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it raises
    found = find("H.264")
    assert found.state == doctor.BROKEN and found.remedy == "pip install av"
    assert find("Blosc").state == doctor.GOOD


def test_without_windows_the_remedy_can_be_pasted(monkeypatch):
    monkeypatch.setattr(doctor, "_has_windows", lambda: False)
    found = find("windows")
    assert (found.state, found.text) == (doctor.MISSING, "flowfuse-live --view window: not there")
    remedy = "pip uninstall opencv-python-headless && pip install opencv-python"
    assert found.remedy == remedy


def test_every_extra_has_its_purpose():
    extras = PROJECT.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE)) == set(doctor.PURPOSES)


def test_metavision_is_looked_for(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: object() if name == "metavision_core" else found(name, *rest),
    )
    assert find("metavision").state == doctor.GOOD


def test_operators_are_compared_on_demand(monkeypatch, capsys):
    monkeypatch.setattr("flowfuse.ops.__main__.main", lambda: 1)
    assert doctor.main(["--operators"]) == 1
    assert "operators against their references" in capsys.readouterr().out
    assert doctor.main(["--operator-s"]) == 2
