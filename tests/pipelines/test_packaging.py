"""What users start from: the cluster's YAML in the documentation, and a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_ray_takes_the_cluster_of_the_documentation() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    pytest.importorskip("jsonschema")
    data = yaml.safe_load((ROOT / "docs" / "ray-cluster.yaml").read_text())
    prepared = util.prepare_config(data)
    util.validate_config(prepared)
    workers = prepared["available_node_types"]["worker"]
    assert workers["min_workers"] * workers["resources"]["CPU"] == 64  # as many as its first lines train with
    with pytest.raises(Exception, match="idle_minutes"):
        util.validate_config({**prepared, "idle_minutes": 5})


@pytest.mark.slow
def test_a_wheel_has_all_packages(tmp_path: Path) -> None:
    """Two of them lie beside embstore/ in the tree, and below it in a wheel."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("embstore", "models", "pipelines"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=left_out, symlinks=True)
    for name in ("models", "pipelines"):
        (source / "embstore" / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("embstore/")}
    modules = {str(path.relative_to(source)) for path in source.rglob("embstore/**/*.py") if "build" not in path.parts}
    modules |= {
        f"embstore/{path.relative_to(source)}" for of in ("models", "pipelines") for path in (source / of).glob("*.py")
    }
    assert {"embstore/pipelines/train.py", "embstore/pipelines/mailbox.py", "embstore/models/dcn.py"} <= modules
    page = {f"embstore/{path.relative_to(source / 'embstore')}" for path in source.glob("embstore/serving/page.*")}
    assert page
    assert modules | page | {"embstore/py.typed"} == found
