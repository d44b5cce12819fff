"""No pickle, anywhere: the code can't, and while a store is used nothing does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import embstore

ROOT = Path(embstore.__file__).parent
FORBIDDEN = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg", "pickletools"}
# Calls by their last two names; np.load is fine without allow_pickle, but nothing here needs it.
CALLS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("jit", "load"), ("read", "pickle")}


def _imports(tree: ast.AST) -> set[str]:
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            out |= {value.value for value in node.args if isinstance(value, ast.Constant)}
    return out


def _pickling(tree: ast.AST) -> list[str]:
    out = [name for name in _imports(tree) if name.split(".")[0] in FORBIDDEN]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            holder = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if (holder, node.attr) in CALLS or node.attr == "read_pickle":
                out.append(f"{holder}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            out.append("allow_pickle")
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            out += [alias.name for alias in node.names if alias.name in ("load", "save")]
    return out


def _modules() -> dict[Path, ast.AST]:
    """The store, checkpoints, and all of embstore that they import, directly or not."""
    found: dict[Path, ast.AST] = {}
    left = [*(ROOT / "store").glob("*.py"), ROOT / "checkpoints.py"]
    while left:
        path = left.pop()
        if path in found:
            continue
        found[path] = ast.parse(path.read_text())
        for name in _imports(found[path]):
            if name.split(".")[0] == "embstore" and not name.startswith("embstore.models"):
                base = ROOT.joinpath(*name.split(".")[1:])
                left += [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
    return found


def test_no_module_of_the_store_can_pickle() -> None:
    modules = _modules()
    assert {"documents.py", "checkpoints.py", "errors.py", "schema.py"} <= {path.name for path in modules}
    assert {str(path): names for path, tree in modules.items() if (names := _pickling(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n  import joblib.numpy_pickle as x",
        "importlib.import_module('marshal')",
        "torch.load(x)",
        "from torch import load",
        "np.load(x, allow_pickle=True)",
        "pd.read_pickle(x)",
        "torch.jit.load(x)",
    ],
)
def test_the_search_finds_pickles(code: str) -> None:
    assert _pickling(ast.parse(code))


USE = """
import json, pickle, sys
from pathlib import Path
from publisher import small_bundle
import torch
from embstore import checkpoints
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.schema import Feature
from embstore.store import Bundle, Store

features = (Feature(name="user"),)
table = UnifiedEmbedding(features, num_rows=8, dim=2, kernel="reference").eval()
# Numba keeps its machine code beside the modules, in pickles as trusted as they are. That is done before it counts.
table.lookup("user", ["ann", None])

events = []
sys.addaudithook(lambda event, args: events.append(event) if event in ("pickle.find_class",) else None)
assert isinstance(pickle.loads(pickle.dumps(Path("x"))), Path)  # the hook does hear
heard = events.count("pickle.find_class")

calls = []
for name in ("load", "loads", "dump", "dumps"):
    def spy(*args, call=getattr(pickle, name), name=name, **options):
        calls.append(name)
        return call(*args, **options)
    setattr(pickle, name, spy)

events.clear()
store = Store(sys.argv[1])
bundle = small_bundle()
a, b = store.publish(bundle), store.publish(Bundle(**{**vars(bundle), "table": table}))
store.promote(a.id), store.promote(b.id), store.rollback()
for info in store.versions():
    store.verify(info.id)
version = store.open("production")
version.dense_state(), version.table.gather(torch.arange(8))
UnifiedEmbedding.restore(store.open(b.id).table, kernel="reference").eval().lookup("user", ["ann", None])
store.publish(Bundle(**{**vars(bundle), "table": version.table}))
folder = checkpoints.Checkpoints(sys.argv[1] + "-checkpoints")
name = folder.save(1, {"step": 1}, {"table": {"rows": torch.ones(3)}}, range(3))
folder.load(name, 3, range(3))
print(json.dumps({"heard": heard, "events": events.count("pickle.find_class"), "calls": calls}))
"""


def test_nothing_is_pickled_while_a_store_is_used(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", USE, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    end = json.loads(result.stdout)
    assert end["heard"] > 0
    assert (end["events"], end["calls"]) == (0, [])
