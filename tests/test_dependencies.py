"""What we import is declared where it is needed, and what is declared is imported.

A controller is installed without extras, an agent with `agent`, and torch comes with `torch` alone: an import that the
extra of its folder does not bring works on every developer's machine and fails on the user's.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # where the module's name is not that of the distribution
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "protobuf": "google",
}
USED_BY_NAME = {"aiosqlite"}  # SQLAlchemy loads the driver that the database's URL names
EXTRAS = {  # folder -> the extras that are installed where it runs, besides the base
    "controller": (),
    "deploy": (),
    "proto": (),
    "agent": ("agent",),
    "kernels": ("agent", "torch"),
    "runtime": ("agent", "torch"),
}


def declared(project):
    """extra -> the modules that it brings; the base is the extra ""."""
    requirements = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {}
    for extra, lines in requirements.items():
        names = [re.match(r"[A-Za-z0-9._-]+", line).group().lower() for line in lines]
        found[extra] = {MODULES.get(name, name.replace("-", "_")) for name in names}
    return found


def imported(root, files):
    """folder -> the top modules that its files import, the standard library's and our own left out."""
    found = {folder: set() for folder in EXTRAS}
    for path in files:
        folder = path.split("/")[0]
        if folder not in found or not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((root / path).read_text("utf-8"), path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found[folder] |= {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"shoal"}
    return found


def undeclared(extras, used):
    for folder, modules in used.items():
        have = extras[""].union(*(extras[extra] for extra in EXTRAS[folder]))
        yield from (f"{folder} imports {module}, which none of its extras brings" for module in sorted(modules - have))


def unused(extras, used):
    ours = set().union(*used.values()) | USED_BY_NAME
    for extra in ("", "agent", "torch"):
        yield from (
            f"{module} is declared ({extra or 'base'}) and not imported" for module in sorted(extras[extra] - ours)
        )


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_imports_and_declarations_agree(project):
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    files = [path for path in listing.stdout.split("\0") if path and (ROOT / path).is_file()]
    used, extras = imported(ROOT, files), declared(project)
    assert "grpc" in used["controller"]
    assert list(undeclared(extras, used)) + list(unused(extras, used)) == []


def test_everything_declared_is_pinned(project):
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = [line for lines in project["optional-dependencies"].values() for line in lines] + project["dependencies"]
    names = {re.match(r"[A-Za-z0-9._-]+", line).group().lower() for line in wanted} - {"shoal"}
    assert names - pinned == set()


def test_it_finds_what_is_wrong(tmp_path):
    extras = declared(
        {"dependencies": ["click>=8", "rich"], "optional-dependencies": {"agent": ["numpy"], "torch": []}}
    )
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "a.py").write_text("import os, click.core\ndef f():\n    from numpy import array\n")
    used = imported(tmp_path, ["deploy/a.py", "tests/b.py"])
    assert list(undeclared(extras, used)) == ["deploy imports numpy, which none of its extras brings"]
    assert list(unused(extras, used)) == ["rich is declared (base) and not imported"]
