"""Builds the wheel and uses it as a stranger would: a fresh environment, no checkout on the path.

The packages `kernels` and `proto-plus` of PyPI own the plain names that our folders have; both must survive beside us.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
names = []
for part in sys.argv[1:]:
    package = importlib.import_module("shoal." + part)
    names += [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]
names = [n for n in names if not n.endswith("__main__") and ".migrations." not in n]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted(sys.modules)}))
"""


def run(*command, cwd):
    """Stdout of a command that must succeed; it sees neither our checkout nor our environment's settings."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV") and not k.startswith("SHOAL_")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("shoal-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    return folder


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"shoal", f"shoal-{wheel.name.split('-')[1]}.dist-info"}
    parts = {name.split("/")[1] for name in names if name.startswith("shoal/")}
    folders = {"agent", "controller", "deploy", "kernels", "models", "proto", "runtime"}
    assert parts == {"__init__.py", "py.typed", *folders}
    assert [n for n in names if n.startswith("shoal/kernels/cpu/_cpu.") and n.endswith((".so", ".pyd"))]
    assert "shoal/proto/v1/link_pb2.py" in names
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        name.removeprefix("shoal/models/pocket/") for name in names
    }
    unwanted = [n for n in names if n.endswith((".cc", ".h")) or (n.startswith("shoal/models") and n.endswith(".py"))]
    assert unwanted == []


def test_a_controller_needs_neither_torch_nor_numpy(wheel, environment):
    python = environment / "env" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", "-c", CONSTRAINTS, wheel, cwd=environment)
    report = json.loads(run(python, "-P", "-c", IMPORT_ALL, "controller", "proto", "deploy", cwd=environment))
    assert {"shoal.controller", "shoal.deploy.cli", "shoal.proto.v1.link_pb2"} <= set(report["imported"])
    assert not {"torch", "numpy"} & set(report["loaded"])
    version = wheel.name.split("-")[1]
    assert version in run(environment / "env" / "bin" / "shoal", "version", cwd=environment)


def test_everything_beside_kernels_and_proto_plus(wheel, environment):
    python = environment / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "install", "-c", CONSTRAINTS)
    run(*pip, f"shoal[all] @ {wheel.as_uri()}", "kernels", "proto-plus", cwd=environment)
    parts = ("agent", "controller", "deploy", "kernels", "proto", "runtime")
    report = json.loads(run(python, "-c", IMPORT_ALL, *parts, cwd=environment))
    assert "shoal.kernels.cpu.module" in report["imported"]
    code = (
        "import kernels, proto, shoal.kernels, shoal.proto, shoal; from importlib.resources import files\n"
        "assert kernels.get_kernel and proto.Message and kernels is not shoal.kernels and proto is not shoal.proto\n"
        "print((files('shoal') / 'models/pocket/config.json').is_file())"
    )
    assert run(python, "-c", code, cwd=environment).strip() == "True"
    run(python, "-m", "pip", "--quiet", "uninstall", "--yes", "shoal", cwd=environment)
    assert run(python, "-c", "import kernels, proto; print('well')", cwd=environment).strip() == "well"
