"""PecanPy's walks (SparseOTF) and gensim's skip-gram, as PecanPy's own command line puts them together.

They have an environment of their own, whose interpreter runs this file:

    PECANPY_PYTHON benchmarks/peers/pecanpy_gensim.py SETTINGS      JSON: edges, p, q, length, num_walks, dim, window,
                                                                    seed, threads, out

PecanPy compiles its walks in each process, and again for each graph: that is a part of what its users wait for.
``compile_seconds`` says how long it is: the time for walks on a triangle, taken after all else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PYTHON = Path(os.environ.get("EMBSTORE_PECANPY_PYTHON", "runs/pecanpy/bin/python"))
COMMAND = (str(PYTHON.absolute()), str(Path(__file__).resolve()))


def missing() -> str | None:
    """What there is to install, if anything."""
    if PYTHON.exists():
        return None
    return "not installed: PecanPy, whose interpreter EMBSTORE_PECANPY_PYTHON names (benchmarks/peers/README.md)"


def embed(settings: dict[str, Any]) -> dict[str, Any]:
    """Read, walk, train, write; by PecanPy's interpreter."""
    from importlib.metadata import version

    import numpy as np
    from gensim.models import Word2Vec

    seconds = {}
    graph, seconds["read"] = _read(settings["edges"], settings)
    walks, seconds["walks"] = _walks(graph, settings)
    begun = time.perf_counter()
    model = Word2Vec(
        walks,
        vector_size=settings["dim"],
        window=settings["window"],
        sg=1,
        min_count=0,
        workers=settings["threads"],
        epochs=1,
        seed=settings["seed"],
    )
    seconds["train"] = time.perf_counter() - begun
    begun = time.perf_counter()
    np.savez(settings["out"], ids=[int(key) for key in model.wv.index_to_key], vectors=model.wv.vectors)
    seconds["write"] = time.perf_counter() - begun
    peak, used = _peak_mib(), resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as triangle:
        triangle.write("1\t2\n2\t3\n1\t3\n")
        triangle.flush()
        compile_seconds = _walks(_read(triangle.name, settings)[0], {**settings, "num_walks": 1})[1]
    return {
        "seconds": seconds,
        "whole": sum(seconds.values()),
        "peak_mib": peak,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "compile_seconds": compile_seconds,
        "packages": {name: version(name) for name in ("pecanpy", "gensim", "numpy", "numba")},
    }


def _read(path: str, settings: dict[str, Any]) -> tuple[Any, float]:
    from pecanpy import pecanpy

    start = time.perf_counter()
    threads, seed = settings["threads"], settings["seed"]
    graph = pecanpy.SparseOTF(p=settings["p"], q=settings["q"], workers=threads, verbose=False, random_state=seed)
    graph.read_edg(path, weighted=False, directed=False)
    return graph, time.perf_counter() - start


def _walks(graph: Any, settings: dict[str, Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    # It counts steps: one fewer than nodes.
    walks = graph.simulate_walks(num_walks=settings["num_walks"], walk_length=settings["length"] - 1)
    return walks, time.perf_counter() - start


def _peak_mib() -> float:
    """As ``benchmarks.graphs.embed``, which this interpreter can't import; no process is started besides this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(embed(json.loads(sys.argv[1]))))
