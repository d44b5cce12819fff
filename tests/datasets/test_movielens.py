"""MovieLens: ratings to likes, users and films joined, a seeded random split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embstore import datasets
from embstore.errors import DatasetError
from embstore.logs import ParquetLog

MOVIES = {
    1: ("Toy Story", 1995, ["Animation", "Children's", "Comedy"]),
    2: ("Star Wars: Episode IV", 1977, ["Action", "Sci-Fi"]),
    3: ("Misérables, Les", 1998, ["Drama"]),
    9: ('Doc: "What?"', None, []),
}
USERS = {1: ("F", 1, 10, "48067"), 2: ("M", 56, 16, "70072"), 5: ("M", 25, 20, "T8H1N")}
SECONDS = 978_300_760
# 60 ratings: every user rates every film five times over, 1 to 5.
RATINGS = [(u, m, r, SECONDS + r) for u in USERS for m in MOVIES for r in (1, 2, 3, 4, 5)]


def title(movie: int) -> str:
    name, year, _ = MOVIES[movie]
    return f"{name} ({year})" if year else name


def raw_1m(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    ratings = "".join("::".join(map(str, row)) + "\n" for row in RATINGS)
    users = "".join(f"{user}::{'::'.join(map(str, about))}\n" for user, about in USERS.items())
    movies = "".join(f"{movie}::{title(movie)}::{'|'.join(MOVIES[movie][2])}\n" for movie in MOVIES)
    for name, text in (("ratings", ratings), ("users", users), ("movies", movies)):
        (folder / f"{name}.dat").write_text(text, encoding="latin-1")
    return folder


def raw_1m_parquet(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    ratings = pa.table(list(zip(*RATINGS, strict=True))[:3], names=["user_id", "movie_id", "rating"])
    users = pa.Table.from_pylist(
        [
            dict(zip(("user_id", "gender", "age", "occupation", "zip_code"), (u, *a), strict=True))
            for u, a in USERS.items()
        ]
    )
    films = [
        {"movie_id": m, "title": title(m), "genres": genres, "year": year} for m, (_, year, genres) in MOVIES.items()
    ]
    for name, table in (("ratings", ratings), ("users", users), ("movies", pa.Table.from_pylist(films))):
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def raw_100k(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    names = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"]
    names += ["Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
    flags = {movie: "|".join(str(int(name in MOVIES[movie][2])) for name in names) for movie in MOVIES}
    items = "".join(f"{movie}|{title(movie)}|01-Jan-1995||http://x|{flags[movie]}\n" for movie in MOVIES)
    users = "".join(f"{user}|{age}|{sex}|job{job}|{code}\n" for user, (sex, age, job, code) in USERS.items())
    (folder / "u.item").write_text(items, encoding="latin-1")
    (folder / "u.user").write_text(users)
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    return folder


def raw_latest(folder: Path, tags: list[tuple[int, int, str]] | None = None) -> Path:
    folder.mkdir(exist_ok=True)

    def write(name: str, header: str, rows: list[tuple[Any, ...]]) -> None:
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([header.split(","), *rows])

    # Half stars too: 0.5 to 2.5 are dislikes, 3.5 to 5 likes.
    halves = [(u, m, r / 2, SECONDS + r) for u in USERS for m in MOVIES for r in range(1, 11)]
    write("ratings.csv", "userId,movieId,rating,timestamp", halves)
    films = [(movie, title(movie), "|".join(MOVIES[movie][2]) or "(no genres listed)") for movie in MOVIES]
    write("movies.csv", "movieId,title,genres", films)
    if tags is not None:
        write("tags.csv", "userId,movieId,tag,timestamp", [(*tag, SECONDS) for tag in tags])
    return folder


def all_rows(result: datasets.Conversion) -> list[dict[str, Any]]:
    return [row for split in ("train", "valid", "test") for row in pq.read_table(result.split(split)).to_pylist()]


def expected_1m(user: int, movie: int, rating: float, seconds: int) -> dict[str, Any]:
    name, year, genres = MOVIES[movie]
    time = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    row = {"label": int(rating > 3), "user_id": user, "movie_id": movie, "timestamp": time}
    row |= dict(zip(("gender", "age", "occupation", "zip_code"), USERS[user], strict=True))
    return row | {"title": name, "year": year, "genres": genres}


def key(row: dict[str, Any]) -> str:
    return str(sorted(row.items()))


def test_1m(tmp_path: Path) -> None:
    result = datasets.convert("movielens-1m", raw_1m(tmp_path / "raw"), tmp_path / "out")
    # 60 ratings, 12 of them 3.
    assert result.rows == {"train": 38, "valid": 5, "test": 5}
    expected = [expected_1m(*row) for row in RATINGS if row[2] != 3]
    assert sorted(map(key, all_rows(result))) == sorted(map(key, expected))
    assert result.schema.group == "user_id"
    assert ParquetLog(result.split("train"), result.schema).rows == 38


def test_the_split_is_the_seeded_permutation(tmp_path: Path) -> None:
    result = datasets.convert("movielens-1m", raw_1m(tmp_path / "raw"), tmp_path / "out")
    kept = [row for row in RATINGS if row[2] != 3]
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence(0))).permutation(len(kept))
    assert list(map(key, all_rows(result))) == [key(expected_1m(*kept[place])) for place in order]


def test_1m_as_parquet_gives_the_same_but_for_times(tmp_path: Path) -> None:
    official = datasets.convert("movielens-1m", raw_1m(tmp_path / "raw"), tmp_path / "a")
    parquet = datasets.convert("movielens-1m", raw_1m_parquet(tmp_path / "parquet"), tmp_path / "b")
    for split in ("train", "valid", "test"):
        timed = pq.read_table(official.split(split)).drop_columns("timestamp").to_pylist()
        assert timed == pq.read_table(parquet.split(split)).to_pylist()
    assert official.schema == parquet.schema


def test_100k(tmp_path: Path) -> None:
    result = datasets.convert("movielens-100k", raw_100k(tmp_path / "raw"), tmp_path / "out")
    expected = [expected_1m(*row) for row in RATINGS if row[2] != 3]
    expected = [row | {"occupation": f"job{row['occupation']}"} for row in expected]
    assert sorted(map(key, all_rows(result))) == sorted(map(key, expected))
    assert [column.name for column in result.schema.dense] == ["age"]


def test_latest_with_half_stars_and_tags(tmp_path: Path) -> None:
    tags = [
        *((user, 1, "Pixar") for user in (1, 2, 5)),
        *((1, 1, tag) for tag in ("a", "b", "c", "d", "e", "pixar")),
        *((user, 1, "fun, \"for\" all") for user in (1, 2)),
        *((1, 2, "space") for _ in range(3)),  # one user three times counts once
        *((user, 2, "Force ") for user in (1, 2)),
        (1, 77, "of no film"),
    ]  # fmt: skip
    result = datasets.convert("movielens-latest", raw_latest(tmp_path / "raw", tags), tmp_path / "out")
    rows = all_rows(result)
    # 10 half stars for 3 users and 4 films, without 3.0.
    assert len(rows) == 9 * 12
    assert sum(row["label"] for row in rows) == 4 * 12
    shown = {row["movie_id"]: (row["title"], row["year"], row["genres"], row["tags"]) for row in rows}
    assert shown == {
        1: (*MOVIES[1], ["pixar", 'fun, "for" all', "a", "b", "c"]),
        2: (*MOVIES[2], ["force", "space"]),
        3: (*MOVIES[3], []),
        9: (*MOVIES[9], []),
    }
    assert result.schema.feature("tags").pooling == "mean"


def test_latest_without_tags(tmp_path: Path) -> None:
    result = datasets.convert("movielens-latest", raw_latest(tmp_path / "raw"), tmp_path / "out")
    assert [feature.name for feature in result.schema.features] == ["user_id", "movie_id", "year", "genres"]
    assert "tags" not in pq.read_schema(result.split("train") / "part-00000.parquet").names


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    source = raw_1m(tmp_path / "raw")
    with (source / "ratings.dat").open("a") as file:
        file.write("1::2::3\n")
    with pytest.raises(DatasetError, match=r"ratings\.dat, line 61; expected 4 fields; found 3"):
        datasets.convert("movielens-1m", source, tmp_path / "out")


def test_a_film_nobody_describes_is_named(tmp_path: Path) -> None:
    source = raw_1m(tmp_path / "raw")
    with (source / "ratings.dat").open("a") as file:
        file.write(f"1::4242::5::{SECONDS}\n")
    with pytest.raises(DatasetError, match="ratings name movie_id 4242; expected a line"):
        datasets.convert("movielens-1m", source, tmp_path / "out")


@pytest.mark.parametrize(("rating", "found"), [("7", "7"), ("0", "0"), ("", "none")])
def test_a_rating_out_of_range_is_an_error(tmp_path: Path, rating: str, found: str) -> None:
    source = raw_1m(tmp_path / "raw")
    with (source / "ratings.dat").open("a") as file:
        file.write(f"1::1::{rating}::{SECONDS}\n")
    with pytest.raises(DatasetError, match=rf"ratings\.dat: a rating; expected 0\.5 to 5; found {found}"):
        datasets.convert("movielens-1m", source, tmp_path / "out")


def test_shared_100k(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("movielens-100k")
    result = datasets.convert("movielens-100k", source, tmp_path / "out")
    ratings = pq.read_table(source / "ratings.parquet").to_pandas()
    kept = ratings[ratings.rating != 3]
    assert sum(result.rows.values()) == len(kept)
    table = pa.concat_tables(pq.read_table(result.split(split)) for split in result.rows).to_pandas()
    assert table.label.sum() == (kept.rating > 3).sum()
    likes = (kept.rating > 3).groupby(kept.user_id).sum()
    assert (table.groupby("user_id").label.sum() == likes).all()
    assert ParquetLog(result.split("valid"), result.schema).rows == result.rows["valid"]


def test_shared_1m_has_the_rows_papers_count(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    result = datasets.convert("movielens-1m", shared_data("movielens-1m"), tmp_path / "out")
    assert sum(result.rows.values()) == 739_012
    assert result.rows == {"train": 591_209, "valid": 73_901, "test": 73_902}
