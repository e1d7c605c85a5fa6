"""Holds the house: who may import whom, where torch and grpc may be, how long a file is, what it may be called.

Each rule is a function from a tree of files to complaints. `test_the_tree` runs them on this checkout; the rest proves
on small made-up trees that each rule bites.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "controller", "deploy", "kernels", "proto", "runtime")
MAY_IMPORT = {"agent": {"runtime", "proto"}, "runtime": {"kernels"}, "controller": {"proto"}}
TORCH_FREE_RUNTIME = ("config", "plan", "wire")  # all of shoal.runtime that the agent may import
MAY_IMPORT_TORCH = ("kernels/reference/", "kernels/triton/", "runtime/")
MAY_IMPORT_GRPC = ("proto/", "agent/", "controller/")
FORBIDDEN_NAMES = {"util", "utils", "common", "helper", "helpers"}
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
MAX_LINES = 400


class Import(NamedTuple):
    path: str  # of the importing file, from the root
    line: int
    target: str  # absolute dotted name, the imported name included
    is_relative: bool
    is_lazy: bool  # inside a function
    is_for_types: bool  # under `if TYPE_CHECKING:`

    def __str__(self):
        return f"{self.path}:{self.line}: imports {self.target}"


def checkout_files(root):
    """Tracked files and new ones that git does not ignore; every file where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    names = (
        listing.stdout.split("\0")
        if listing.returncode == 0
        else [p.relative_to(root).as_posix() for p in root.rglob("*")]
    )
    return sorted(name for name in names if name and (root / name).is_file())


def imports(root, files):
    for path in files:
        if path.endswith(".py") and path.split("/")[0] in PACKAGES and not path.endswith(GENERATED):
            yield from imports_of(path, ast.parse((root / path).read_text("utf-8"), path))


def imports_of(path, tree):
    package = ("shoal", *PurePosixPath(path).parts[:-1])

    def walk(node, is_lazy, is_for_types):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(path, child.lineno, alias.name, False, is_lazy, is_for_types)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                for alias in child.names:
                    target = ".".join((*base, *([child.module] if child.module else []), alias.name))
                    yield Import(path, child.lineno, target, child.level > 0, is_lazy, is_for_types)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, is_lazy or inside, is_for_types or types)

    yield from walk(tree, False, False)


def directions(root, files):
    """Arrows point down: agent and controller stand on runtime and proto, those on nothing of ours (but kernels)."""
    for imp in imports(root, files):
        here, there = imp.path.split("/")[0], (imp.target.split(".") + [""] * 3)[:3]
        if there[0] != "shoal" or there[1] not in PACKAGES:
            continue
        if here == there[1]:
            if not imp.is_relative and not imp.path.endswith("/__main__.py"):  # may be run as a plain file
                yield f"{imp}: within a package imports are relative"
        elif imp.is_relative:
            yield f"{imp}: across packages imports are absolute"
        elif here == "deploy":
            if not imp.is_lazy:
                yield f"{imp}: deploy starts the others as processes or loads them lazily"
        elif there[1] not in MAY_IMPORT.get(here, ()):
            yield f"{imp}: {here} may not import {there[1]}"
        elif (here, there[1]) == ("agent", "runtime") and there[2] not in TORCH_FREE_RUNTIME:
            yield f"{imp}: of the runtime the agent may import {', '.join(TORCH_FREE_RUNTIME)} only"


def torch_stays_home(root, files):
    light = {f"runtime/{name}.py" for name in TORCH_FREE_RUNTIME}
    for imp in imports(root, files):
        if imp.target.split(".")[0] in ("torch", "triton", "transformers") and (
            not imp.path.startswith(MAY_IMPORT_TORCH) or imp.path in light
        ):
            yield f"{imp}: torch may be imported in {', '.join(MAY_IMPORT_TORCH)} only"


def grpc_stays_home(root, files):
    for imp in imports(root, files):
        if imp.target.split(".")[0].startswith("grpc") and not imp.path.startswith(MAY_IMPORT_GRPC):
            yield f"{imp}: grpc may be imported in {', '.join(MAY_IMPORT_GRPC)} only"


def no_circles(root, files):
    """Counts lazy imports too: a circle cut open by a function is a circle still. Imports for types alone are free."""
    modules = {}
    for path in files:
        if path.split("/")[0] in PACKAGES and path.endswith((".py", ".pyi")):
            parts = PurePosixPath(path).with_suffix("").parts
            modules[".".join(("shoal", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    by_path = {path: module for module, path in modules.items()}
    graph = {module: set() for module in modules}
    for imp in imports(root, files):
        target = imp.target if imp.target in modules else imp.target.rpartition(".")[0]
        if not imp.is_for_types and target in modules and imp.path in by_path:
            graph[by_path[imp.path]].add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "circle of imports: " + " <- ".join(error.args[1])


def short_files(root, files):
    for path in files:
        if path.endswith((".py", ".pyi", ".cc", ".h")) and not path.endswith(GENERATED) and "/migrations/" not in path:
            num_lines = len((root / path).read_text("utf-8").splitlines())
            if num_lines > MAX_LINES:
                yield f"{path}: {num_lines} lines, more than {MAX_LINES}; find the seam"


def telling_names(root, files):
    for path in files:
        for part in PurePosixPath(path).parts:
            if part.split(".")[0].lower() in FORBIDDEN_NAMES:
                yield f"{path}: a file is named after what it does, not {part}"


def nothing_beside_the_checkout(root, files):
    needle = b"../" + b"shared"
    for path in files:
        if needle in (root / path).read_bytes():
            yield f"{path}: mentions {needle.decode()}, which no other checkout has"


RULES = (
    directions,
    torch_stays_home,
    grpc_stays_home,
    no_circles,
    short_files,
    telling_names,
    nothing_beside_the_checkout,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree(rule):
    files = checkout_files(ROOT)
    assert "tests/test_architecture.py" in files
    assert list(rule(ROOT, files)) == []


def loaded_by(*modules):
    """The names in `sys.modules` after a fresh interpreter has imported these."""
    code = "import sys, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", code, *modules], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def modules_of(package):
    for path in checkout_files(ROOT):
        if path.startswith(f"{package}/") and path.endswith(".py") and not path.endswith("__main__.py"):
            name = "shoal." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if "/migrations/" not in path:  # alembic runs those, nobody imports them
                yield name


@pytest.mark.parametrize("name", TORCH_FREE_RUNTIME)
def test_what_the_agent_imports_of_the_runtime_is_light(name):
    assert not {"torch", "numpy"} & loaded_by(f"shoal.runtime.{name}")


@pytest.mark.parametrize("package", ["controller", "proto", "deploy"])
def test_no_number_crunching_in_the_control_plane(package):
    """The static rule sees direct imports; this sees what they bring along."""
    assert not {"torch", "numpy", "shoal.runtime", "shoal.kernels"} & loaded_by(*modules_of(package))


def test_the_agent_never_loads_torch():
    assert not {"torch", "shoal.kernels", "shoal.controller"} & loaded_by(*modules_of("agent"))


def test_the_supervisor_stays_light():
    """Each of these costs 3 MB or more of the 80 MB that an idle agent may use; what needs one is a child or comes later."""
    heavy = {"sqlalchemy", "huggingface_hub", "numpy", "tokenizers", "pydantic", "cryptography", "httpx2", "rich"}
    assert not heavy & loaded_by("shoal.agent.service")


BITES = {
    "controller imports runtime": (directions, {"controller/router.py": "from shoal.runtime import wire"}),
    "runtime imports proto": (directions, {"runtime/engine.py": "import shoal.proto.v1.link_pb2"}),
    "kernels import runtime": (directions, {"kernels/ops.py": "def f():\n    from shoal.runtime import config"}),
    "agent imports kernels": (directions, {"agent/bench.py": "from shoal.kernels import cpu"}),
    "agent imports the engine": (directions, {"agent/worker.py": "from shoal.runtime.engine import Engine"}),
    "only for types": (directions, {"agent/a.py": "if TYPE_CHECKING:\n    from shoal.controller import errors"}),
    "absolute at home": (directions, {"agent/link.py": "from shoal.agent import session"}),
    "relative abroad": (directions, {"agent/link.py": "from ..proto.v1 import link_pb2"}),
    "deploy imports at once": (directions, {"deploy/cli.py": "import shoal.controller.cli"}),
    "torch in the agent": (torch_stays_home, {"agent/probe.py": "def f():\n    import torch.cuda"}),
    "torch in the plan": (torch_stays_home, {"runtime/plan.py": "from torch import nn"}),
    "torch in the cpu kernels": (torch_stays_home, {"kernels/cpu/module.py": "import torch"}),
    "grpc in the runtime": (grpc_stays_home, {"runtime/host.py": "from grpc import aio"}),
    "grpc in deploy": (grpc_stays_home, {"deploy/up.py": "import grpc_health.v1"}),
    "a circle": (no_circles, {"agent/a.py": "from .b import x", "agent/b.py": "def f():\n    from . import a"}),
    "a circle over the face": (no_circles, {"agent/__init__.py": "from .a import x", "agent/a.py": "from . import x"}),
    "long file": (short_files, {"agent/a.py": "x = 1\n" * (MAX_LINES + 1)}),
    "long kernel": (short_files, {"kernels/cpu/a.cc": "//\n" * (MAX_LINES + 1)}),
    "utils": (telling_names, {"agent/utils.py": ""}),
    "a folder of helpers": (telling_names, {"tests/helpers/a.txt": ""}),
    "outside": (nothing_beside_the_checkout, {"docs/a.md": "see ../" + "shared/a.md"}),
}

CLEAN = {
    "agent/__init__.py": "",
    "agent/__main__.py": "from shoal.agent.cli import main",
    "agent/link.py": "import grpc\nfrom shoal import __version__\nfrom shoal.proto.v1 import link_pb2\nfrom .session import S",
    "agent/session.py": "from shoal.runtime.wire import Hello\nfrom shoal.runtime import plan",
    "agent/types.py": "if TYPE_CHECKING:\n    from .session import S",
    "controller/errors.py": "import grpc\n",
    "deploy/cli.py": "def f():\n    from shoal.controller import errors",
    "kernels/cpu/__init__.py": "from .module import f",
    "kernels/cpu/_cpu.pyi": "",
    "kernels/cpu/module.py": "import numpy\nfrom . import _cpu",
    "kernels/reference/norm.py": "import torch",
    "proto/v1/link_pb2.py": "import torch\n" * (MAX_LINES + 1),
    "runtime/model.py": "import torch\nfrom shoal.kernels.reference import norm",
}


def grow(root, tree):
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, "utf-8")
    return sorted(tree)


@pytest.mark.parametrize("case", BITES)
def test_each_rule_bites(case, tmp_path):
    rule, tree = BITES[case]
    assert len(list(rule(tmp_path, grow(tmp_path, tree)))) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_bites_a_clean_tree(rule, tmp_path):
    assert list(rule(tmp_path, grow(tmp_path, CLEAN))) == []
