"""``embstore import``: a version published again with the rows of some values set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import output

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import DataError, EmbstoreError, LogError, SchemaError
from embstore.store import Bundle, OptimizerState, Store, Version

MakeBundle = Callable[..., Bundle]
ROWS, DIM, VALUES = 4000, 4, 50


@pytest.fixture
def version(make_bundle: MakeBundle, tmp_path: Path) -> Version:
    model = {"name": "dnn", "settings": {}, "dense_width": 1, "widths": [2 * DIM, DIM, DIM]}
    plain = make_bundle()
    sizes = {"num_rows": ROWS, "dim": DIM, "exact_tokens": plain.table.exact_tokens(), "init_std": 1.0}
    table = UnifiedEmbedding(plain.schema.features, **sizes)
    state = OptimizerState(
        name="rowwise_adagrad",
        steps=3,
        rates=0.5,
        table={"sum": torch.rand(table.num_rows)},
        dense={"w.step": torch.ones(2)},
    )
    columns = {"user": "int64", "day": "string"}
    return Store(tmp_path / "store").publish(replace(plain, table=table, model=model, optimizer=state, columns=columns))


def vectors_of(folder: Path, values: Any, width: int, **columns: Any) -> tuple[Path, np.ndarray]:
    """A file of these values and drawn vectors, and the vectors."""
    drawn = np.random.default_rng(1).standard_normal((len(values), width)).astype(np.float32)
    path = folder / "vectors.parquet"
    pq.write_table(pa.table({"value": values, "vector": list(drawn), **columns}), path)
    return path, drawn


def imported(folder: Path, *arguments: object) -> tuple[dict[str, Any], Version]:
    said = json.loads(output("import", *arguments, "--store", folder / "store", "--json"))
    return said, Store(folder / "store").open(said["version"])


def rows_of(version: Version) -> torch.Tensor:
    return version.table.read_rows(0, version.table.num_rows).clone()


def looked_up(version: Version, feature: str, values: Any) -> np.ndarray:
    return UnifiedEmbedding.restore(version.table).lookup(feature, values).numpy()


def test_values_get_their_vectors_and_nothing_else_changes(version: Version, tmp_path: Path) -> None:
    before = rows_of(version)
    path, drawn = vectors_of(tmp_path, np.arange(VALUES), 2 * DIM)
    said, new = imported(tmp_path, path, "--feature", "user")
    alone = (looked_up(new, "user", np.arange(VALUES)) == drawn).all(axis=1)
    assert (~alone).sum() == said["shared"] < VALUES / 4
    changed = (rows_of(new) != before).any(dim=1)
    assert int(changed.sum()) == said["rows"] > 1.5 * VALUES
    assert said == {
        "version": new.id,
        "of": version.id,
        "parent": version.id,
        "feature": "user",
        "values": VALUES,
        "taken": VALUES,
        "rows": said["rows"],
        "changed": said["rows"],
        "shared": said["shared"],
        "unknown": 0,
    }
    assert new.parent == version.id
    assert new.delta is None
    assert all(torch.equal(tensor, new.dense[name]) for name, tensor in version.dense.items())
    assert torch.equal(new.optimizer_state().table["sum"], version.optimizer_state().table["sum"])
    assert new.manifest["metrics"] == {}
    assert new.space != version.space
    assert new.manifest["lineage"]["config"] == {"seed": 1}
    assert new.manifest["lineage"]["vocabulary"]["imported"]["vectors"] == str(path)
    assert torch.equal(rows_of(Store(tmp_path / "store").open(version.id)), before)


def test_a_delta_has_the_same_rows_and_only_those_that_changed(version: Version, tmp_path: Path) -> None:
    path, _ = vectors_of(tmp_path, np.arange(VALUES), 2 * DIM)
    _, whole = imported(tmp_path, path, "--feature", "user")
    said, delta = imported(tmp_path, path.as_uri(), "--feature", "user", "--version", version.id, "--delta")
    assert delta.delta is not None
    assert (delta.delta.base, delta.delta.rows) == (version.id, said["rows"])
    assert torch.equal(rows_of(delta), rows_of(whole))
    assert delta.space != version.space


def test_a_quantised_version_stays_so_and_a_delta_of_it_is_exact(version: Version, tmp_path: Path) -> None:
    small = Store(tmp_path / "store").publish(version.bundle(), encoding="int8")
    path, drawn = vectors_of(tmp_path, [0], DIM)
    _, whole = imported(tmp_path, path, "--feature", "Straße/..", "--version", small.id)
    _, delta = imported(tmp_path, path, "--feature", "Straße/..", "--version", small.id, "--delta")
    assert whole.manifest["table"]["dtype"] == delta.manifest["table"]["dtype"] == "int8"
    assert looked_up(whole, "Straße/..", [0]) == pytest.approx(drawn, abs=0.02)
    assert (looked_up(delta, "Straße/..", [0]) == drawn).all()


def test_an_export_imported_into_its_version_changes_nothing(version: Version, tmp_path: Path) -> None:
    values = pa.table({"user": list(range(VALUES)), "Straße/..": [f"v{n}" for n in range(VALUES)]})
    pq.write_table(values, tmp_path / "values.parquet")
    store = ["--store", tmp_path / "store"]
    output("export", *store, "--values", tmp_path / "values.parquet", "--to", tmp_path / "out")
    for feature in ("user", "Straße/.."):
        said, new = imported(tmp_path, tmp_path / "out", "--feature", feature, "--version", version.id)
        assert said["values"] == VALUES
        assert torch.equal(rows_of(new), rows_of(version))
        assert new.space == version.space


def test_a_delta_of_nothing_is_not_published(version: Version, tmp_path: Path) -> None:
    pq.write_table(pa.table({"value": [1, 2, 3]}), tmp_path / "values.parquet")
    flags = ["--feature", "user", "--store", tmp_path / "store"]
    output("export", *flags, "--values", tmp_path / "values.parquet", "--to", tmp_path / "out")
    said = output("import", tmp_path / "out", *flags, "--delta")
    assert said.startswith(f"nothing changed from {version.id}, not published\nuser: 3 values in ")
    said = json.loads(output("import", tmp_path / "out", *flags, "--delta", "--json"))
    assert (said["version"], said["of"], said["parent"], said["changed"]) == (None, version.id, None, 0)
    assert [info.id for info in Store(tmp_path / "store").versions()] == [version.id]


def test_weights_parents_and_unknown_values(version: Version, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    other = store.publish(version.bundle())
    path, _ = vectors_of(tmp_path, ["a", "b"], DIM, n=[1, 3])
    flags = [path, "--feature", "Straße/..", "--version", version.id, "--parent", other.id, "--weight-column", "n"]
    assert imported(tmp_path, *flags)[1].parent == other.id
    with pytest.raises(SchemaError, match=r"column 'm'"):
        imported(tmp_path, path, "--feature", "Straße/..", "--weight-column", "m")
    count = len(store.versions())
    with pytest.raises(DataError, match=r"expected values that 'day' has rows for; found none of its 2"):
        imported(tmp_path, path, "--feature", "day")
    assert len(store.versions()) == count


def test_what_people_read(version: Version, tmp_path: Path) -> None:
    path, _ = vectors_of(tmp_path, np.arange(2000), DIM)
    said = output("import", path, "--feature", "user", "--store", tmp_path / "store").splitlines()
    assert said[0] == f"published {Store(tmp_path / 'store').resolve('latest')} in {tmp_path / 'store'}"
    assert said[1].startswith("user: 2,000 values in 2,")
    assert said[2].endswith("values share a row with another: it is their mean")


@pytest.mark.parametrize(
    ("feature", "values", "error", "message"),
    [
        ("usr", [1], SchemaError, "no feature 'usr' in version .*did you mean 'user'"),
        ("price", [1], SchemaError, "no feature 'price' in version .*; found a dense column; it has no vectors"),
        ("user", ["1"], SchemaError, "expected values like int64; found string; cast them"),
        ("user", [1, 1], DataError, "each value once"),
        ("user", None, LogError, "nowhere; expected Parquet that can be read; found no such file"),
    ],
)
def test_what_cannot_be_imported(
    version: Version, tmp_path: Path, feature: str, values: Any, error: type[EmbstoreError], message: str
) -> None:
    path = tmp_path / "nowhere" if values is None else vectors_of(tmp_path, values, DIM)[0]
    with pytest.raises(error, match=message):
        imported(tmp_path, path, "--feature", feature)
    assert [info.id for info in Store(tmp_path / "store").versions()] == [version.id]


def test_a_folder_without_the_feature_s_vectors_is_refused(version: Version, tmp_path: Path) -> None:
    """Not taken for a folder of parts: values of another feature, of the same type, would be imported as this one's."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    with pytest.raises(LogError, match="vectors; expected a Parquet file, or a folder of them; found none"):
        imported(tmp_path, folder, "--feature", "user")
    (folder / "feature=usr").mkdir()
    pq.write_table(pa.table({"value": [1], "vector": [[0.0] * DIM]}), folder / "feature=usr" / "part-0.parquet")
    with pytest.raises(SchemaError, match="none of feature 'user'; did you mean 'usr'"):
        imported(tmp_path, folder, "--feature", "user")
    assert [info.id for info in Store(tmp_path / "store").versions()] == [version.id]
