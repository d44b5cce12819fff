"""How fast raw columns become tokens: random text of 8 to 36 bytes, and 64-bit integers.

Each contender gets the input it likes best, made beforehand: embstore Arrow columns, pandas its own arrays, xxhash a
list of bytes, scikit-learn a list of rows. embstore uses all cores, as it does in training; the claims named
``one_thread`` are those of columns of one block, which it hashes without its thread pool. The peers have one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash
from sklearn.feature_extraction import FeatureHasher

from benchmarks.report import Result, claim, interleave, main, median
from embstore.tokens import BLOCK, tokenize

SHORTEST, LONGEST = 8, 36  # bytes of a text value
OURS, OURS_ALONE = "embstore", "embstore, one thread"


def measure(quick: bool) -> Result:
    """Rates of embstore and its peers on the same values, interleaved."""
    rows, repeats = (1_000_000, 5) if quick else (4_000_000, 11)
    generator = np.random.default_rng(1)
    texts = random_texts(rows, generator)
    numbers = generator.integers(-(2**63), 2**63 - 1, rows)

    text_samples = interleave(_text_contenders(texts), repeats=repeats)
    integer_samples = interleave(_integer_contenders(numbers), repeats=repeats)
    return Result(
        claims={**_claims("string", rows, text_samples), **_claims("integer", rows, integer_samples)},
        samples={"strings": text_samples, "integers": integer_samples},
        settings={"rows": rows, "bytes": [SHORTEST, LONGEST], "repeats": repeats},
        packages=("pandas", "scikit-learn", "xxhash"),
    )


def random_texts(count: int, generator: np.random.Generator) -> pa.StringArray:
    """Random lower-case text, lengths uniform from ``SHORTEST`` to ``LONGEST``, as a plain Arrow column."""
    bounds = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(generator.integers(SHORTEST, LONGEST + 1, count), out=bounds[1:])
    letters = generator.integers(ord("a"), ord("z") + 1, bounds[-1], dtype=np.uint8)
    return pa.StringArray.from_buffers(count, pa.py_buffer(bounds), pa.py_buffer(letters))


def _text_contenders(texts: pa.StringArray) -> dict[str, Callable[[], object]]:
    values = texts.to_pylist()
    encoded = [value.encode() for value in values]
    rows = [[value] for value in values]
    objects = np.array(values, dtype=object)
    series = pd.Series(pd.array(texts, dtype="string[pyarrow]"))
    hasher = FeatureHasher(n_features=2**24, input_type="string", alternate_sign=False)
    return {
        **_ours(texts),
        "xxhash loop": lambda: [xxhash.xxh64_intdigest(value) for value in encoded],
        "scikit-learn FeatureHasher": lambda: hasher.transform(rows),
        "pandas factorize": lambda: pd.factorize(series),
        "pandas hash_array": lambda: pd.util.hash_array(objects, categorize=False),
    }


def _integer_contenders(numbers: np.ndarray) -> dict[str, Callable[[], object]]:
    return {
        **_ours(pa.array(numbers)),
        "pandas factorize": lambda: pd.factorize(numbers),
        "pandas hash_array": lambda: pd.util.hash_array(numbers, categorize=False),
    }


def _ours(column: pa.Array) -> dict[str, Callable[[], object]]:
    blocks = [column.slice(start, BLOCK) for start in range(0, len(column), BLOCK)]
    return {
        OURS: lambda: tokenize(column, name="x"),
        OURS_ALONE: lambda: [tokenize(block, name="x") for block in blocks],
    }


def _claims(kind: str, count: int, samples: dict[str, list[float]]) -> dict[str, dict]:
    """Ours against the fastest peer, then against each of the others."""
    rates = {name: count / median(seconds) for name, seconds in samples.items()}
    peers = sorted((name for name in rates if name not in (OURS, OURS_ALONE)), key=rates.__getitem__, reverse=True)
    claims = {
        f"{kind}_tokens_per_second": claim(rates[OURS], "1/s", peers[0], rates[peers[0]]),
        f"{kind}_tokens_per_second_one_thread": claim(rates[OURS_ALONE], "1/s", peers[0], rates[peers[0]]),
    }
    for peer in peers[1:]:
        label = peer.lower().replace(" ", "_").replace("-", "_")
        claims[f"{kind}_tokens_per_second_vs_{label}"] = claim(rates[OURS], "1/s", peer, rates[peer])
    return claims


if __name__ == "__main__":
    main("tokens", measure)
