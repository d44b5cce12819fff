"""MovieLens 100K, 1M and latest (and 20M, 25M, 32M, which have its format) as click data: did a user like a film.

A rating above 3 is a like (label 1), one below 3 a dislike (0), and rows rated exactly 3 are dropped; the rest goes to
train, valid and test 80:10:10 at random, as AutoInt (Song et al. 2019, section 5.1) does for 1M, and many after it.

Columns are the same in all sizes: ``label, user_id, movie_id, timestamp, title, year, genres``; 100K and 1M add the
user's ``gender, age, occupation, zip_code``, latest adds ``tags``, the five tags that most users gave the film. The
schema leaves out ``title`` (says no more than ``movie_id``) and ``timestamp`` (when a rating was typed in, not when the
film was seen).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embstore.datasets.conversion import GROUP_ROWS, Raw, by_order, find, not_found, split_rows
from embstore.datasets.text import text_table
from embstore.errors import DatasetError
from embstore.schema import Dense, Feature, Schema

SEED = 0
TAGS_PER_MOVIE = 5
RULE = (
    f"ratings below 3 are 0, above 3 are 1, 3 is dropped; then 80% train, 10% valid, 10% test at random (seed {SEED})"
)
# In the order of the flags in u.item.
GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)

_USER = (Feature(name="gender"), Feature(name="occupation"), Feature(name="zip_code"))
_MOVIE = (Feature(name="year"), Feature(name="genres", pooling="mean", max_length=6))
_IDS = (Feature(name="user_id"), Feature(name="movie_id"))
SCHEMA_100K = Schema(
    label="label", group="user_id", features=(*_IDS, *_USER, *_MOVIE), dense=(Dense(name="age", scale="linear"),)
)
# Ages of 1M are seven codes (1: under 18, 18: 18-24, ...).
SCHEMA_1M = Schema(label="label", group="user_id", features=(*_IDS, Feature(name="age"), *_USER, *_MOVIE))
SCHEMA_LATEST = Schema(label="label", group="user_id", features=(*_IDS, *_MOVIE))
SCHEMA_LATEST_TAGS = Schema(
    label="label",
    group="user_id",
    features=(*_IDS, *_MOVIE, Feature(name="tags", pooling="mean", max_length=TAGS_PER_MOVIE)),
)

_COLUMNS = (
    *("label", "user_id", "movie_id", "timestamp", "gender", "age", "occupation", "zip_code"),
    *("title", "year", "genres", "tags"),
)
_RATING = {"user_id": pa.int32(), "movie_id": pa.int32(), "rating": pa.float32(), "timestamp": pa.int64()}
_USER_1M = {
    "user_id": pa.int32(),
    "gender": pa.string(),
    "age": pa.int32(),
    "occupation": pa.int32(),
    "zip_code": pa.string(),
}
_USER_100K = {
    "user_id": pa.int32(),
    "age": pa.int32(),
    "gender": pa.string(),
    "occupation": pa.string(),
    "zip_code": pa.string(),
}
_MOVIE_100K = {
    **{"movie_id": pa.int32(), "title": pa.string()},
    **dict.fromkeys(("release_date", "video_release_date", "url"), pa.string()),
    **dict.fromkeys(GENRES_100K, pa.int8()),
}
_MOVIE_1M = {"movie_id": pa.int32(), "title": pa.string(), "genres": pa.string()}


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """Ratings, and what is known of their users and movies; ``None``: that is joined already."""

    ratings: pa.Table
    users: pa.Table | None = None
    movies: pa.Table | None = None


def open_100k(source: Path) -> Raw:
    """From the official ``u.data, u.user, u.item``, or one ``ratings.parquet`` that is joined already."""
    if files := _all(source, "u.data", "u.user", "u.item"):
        data, users, movies = files
        return _raw(
            files,
            SCHEMA_100K,
            lambda: _Tables(
                ratings=_timed(text_table(data, _RATING, delimiter="\t")),
                users=text_table(users, _USER_100K, delimiter="|"),
                movies=_movies_100k(movies),
            ),
        )
    if files := _all(source, "ratings.parquet"):
        return _raw(files, SCHEMA_100K, lambda: _Tables(ratings=_joined_100k(files[0])))
    raise not_found("movielens-100k", source, "u.data, u.user and u.item")


def open_1m(source: Path) -> Raw:
    """From the official ``ratings.dat, users.dat, movies.dat``, or the same three as ``.parquet``."""
    if files := _all(source, "ratings.dat", "users.dat", "movies.dat"):
        ratings, users, movies = files
        return _raw(
            files,
            SCHEMA_1M,
            lambda: _Tables(
                ratings=_timed(text_table(ratings, _RATING, delimiter="::", encoding="latin-1")),
                users=text_table(users, _USER_1M, delimiter="::", encoding="latin-1"),
                movies=_titled(_genred(text_table(movies, _MOVIE_1M, delimiter="::", encoding="latin-1"))),
            ),
        )
    if files := _all(source, "ratings.parquet", "users.parquet", "movies.parquet"):
        ratings, users, movies = files
        return _raw(
            files,
            SCHEMA_1M,
            lambda: _Tables(
                ratings=_parquet(ratings, "user_id", "movie_id", "rating"),
                users=_parquet(users, *_USER_1M),
                movies=_titled(_parquet(movies, *_MOVIE_1M)),
            ),
        )
    raise not_found("movielens-1m", source, "ratings.dat, users.dat and movies.dat")


def open_latest(source: Path) -> Raw:
    """From ``ratings.csv, movies.csv`` and, if it is there, ``tags.csv``."""
    files = _all(source, "ratings.csv", "movies.csv")
    if not files:
        raise not_found("movielens-latest", source, "ratings.csv and movies.csv (and tags.csv)")
    ratings, movies = files
    tags = find(source, "tags.csv")
    types = {"userId": pa.int32(), "movieId": pa.int32(), "rating": pa.float32(), "timestamp": pa.int64()}

    def read() -> _Tables:
        rated = text_table(ratings, types, delimiter=",", header=True).rename_columns(list(_RATING))
        types_movies = {"movieId": pa.int32(), "title": pa.string(), "genres": pa.string()}
        films = text_table(movies, types_movies, delimiter=",", header=True, quoted=True).rename_columns(
            list(_MOVIE_1M)
        )
        films = _titled(_genred(films))
        if tags is not None:
            films = films.append_column("tags", _top_tags(tags, films.column("movie_id")))
        return _Tables(ratings=_timed(rated), movies=films)

    return _raw((*files, tags) if tags else files, SCHEMA_LATEST_TAGS if tags else SCHEMA_LATEST, read)


def _raw(files: tuple[Path, ...], schema: Schema, read: Callable[[], _Tables]) -> Raw:
    def rows() -> Iterator[tuple[str, pa.Table]]:
        tables = read()
        ratings = _labelled(tables.ratings, files[0])
        yield from split_rows(_join(ratings, tables), by_order(ratings.num_rows))

    return Raw(files=files, schema=schema, rule=RULE, rows=rows)


def _labelled(ratings: pa.Table, path: Path) -> pa.Table:
    """Ratings with a label, without the neutral ones, in random order."""
    rating = ratings.column("rating").cast(pa.float32())
    wrong = pc.invert(pc.and_(pc.greater_equal(rating, 0.5), pc.less_equal(rating, 5.0)).fill_null(False))
    if pc.any(wrong).as_py():
        found = rating.filter(wrong)[0].as_py()
        raise DatasetError(f"{path}: a rating", expected="0.5 to 5", found="none" if found is None else f"{found:g}")
    labelled = ratings.drop_columns("rating").add_column(0, "label", pc.greater(rating, 3.0).cast(pa.int8()))
    labelled = labelled.filter(pc.not_equal(rating, 3.0))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(SEED)))
    return labelled.take(pa.array(rng.permutation(labelled.num_rows)))


def _join(ratings: pa.Table, tables: _Tables) -> Iterator[pa.Table]:
    for start in range(0, ratings.num_rows, GROUP_ROWS):
        part = ratings.slice(start, GROUP_ROWS)
        for key, others in (("user_id", tables.users), ("movie_id", tables.movies)):
            if others is not None:
                part = _with(part, key, others)
        yield part.select([name for name in _COLUMNS if name in part.column_names])


def _with(part: pa.Table, key: str, others: pa.Table) -> pa.Table:
    """``part`` with the columns that ``others`` has for its key."""
    place = pc.index_in(part.column(key), value_set=others.column(key))
    if place.null_count:
        stranger = part.column(key).filter(place.is_null())[0].as_py()
        raise DatasetError(f"ratings name {key} {stranger}", expected="a line that describes it", found="none")
    for name in others.column_names:
        if name != key:
            part = part.append_column(name, others.column(name).take(place))
    return part


def _timed(ratings: pa.Table) -> pa.Table:
    seconds = ratings.column("timestamp").cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    return ratings.set_column(ratings.column_names.index("timestamp"), "timestamp", seconds)


def _titled(movies: pa.Table) -> pa.Table:
    """``Toy Story (1995)`` -> title ``Toy Story`` and year 1995 (null when the title has none)."""
    title = pc.utf8_trim_whitespace(movies.column("title").cast(pa.string()))
    has_year = pc.match_substring_regex(title, r"\(\d{4}\)$").fill_null(False)
    year = pc.if_else(has_year, pc.utf8_slice_codeunits(title, -5, -1), None).cast(pa.int16())
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(title, r"\(\d{4}\)$", ""))
    return movies.set_column(movies.column_names.index("title"), "title", bare).append_column("year", year)


def _genred(movies: pa.Table) -> pa.Table:
    """``Comedy|Drama`` -> a list; none listed -> an empty one."""
    text = movies.column("genres")
    none = pc.equal(text, "(no genres listed)").fill_null(True)
    lists = pc.split_pattern(text, "|")
    empty = pa.scalar([], type=pa.list_(pa.string()))
    return movies.set_column(movies.column_names.index("genres"), "genres", pc.if_else(none, empty, lists))


def _movies_100k(path: Path) -> pa.Table:
    movies = text_table(path, _MOVIE_100K, delimiter="|", encoding="latin-1")
    flags_MG = np.column_stack([movies.column(genre).to_numpy() == 1 for genre in GENRES_100K])
    offsets = np.concatenate([[0], np.cumsum(flags_MG.sum(1))]).astype(np.int32)
    names = pa.array(GENRES_100K).take(pa.array(np.nonzero(flags_MG)[1]))
    genres = pa.ListArray.from_arrays(pa.array(offsets), names)
    return _titled(movies.select(["movie_id", "title"])).append_column("genres", genres)


def _joined_100k(path: Path) -> pa.Table:
    renamed = {"item_id": "movie_id", "movie_title": "title", "release_year": "year"}
    table = _parquet(
        path, "user_id", "rating", "timestamp", "age", "gender", "occupation", "zip_code", "genres", *renamed
    )
    return table.rename_columns([renamed.get(name, name) for name in table.column_names])


def _top_tags(path: Path, movies: pa.ChunkedArray) -> pa.Array:
    """For each movie the tags that most users gave it, letter case aside; ties in alphabetical order."""
    types = {"userId": pa.int32(), "movieId": pa.int32(), "tag": pa.string(), "timestamp": pa.int64()}
    given = text_table(path, types, delimiter=",", header=True, quoted=True)
    given = given.set_column(2, "tag", pc.utf8_lower(pc.utf8_trim_whitespace(given.column("tag"))))
    users = (
        given.filter(given.column("tag").is_valid())
        .group_by(["movieId", "tag"])
        .aggregate([("userId", "count_distinct")])
    )
    place = pc.index_in(users.column("movieId"), value_set=movies)
    users = users.append_column("movie", place).filter(place.is_valid())
    users = users.sort_by([("movie", "ascending"), ("userId_count_distinct", "descending"), ("tag", "ascending")])
    movie = users.column("movie").to_numpy()
    kept = np.arange(len(movie)) - np.searchsorted(movie, movie) < TAGS_PER_MOVIE
    offsets = np.searchsorted(movie[kept], np.arange(len(movies) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), users.column("tag").filter(pa.array(kept)).combine_chunks())


def _parquet(path: Path, *columns: str) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns)).replace_schema_metadata()
    except (OSError, ValueError, pa.ArrowException) as error:
        found = str(error).split("\n")[0]
        raise DatasetError(f"{path}", expected=f"Parquet with columns {', '.join(columns)}", found=found) from error


def _all(source: Path, *names: str) -> tuple[Path, ...]:
    """All these files of a folder, or none."""
    found = [find(source, name) for name in names]
    return tuple(path for path in found if path is not None) if all(found) else ()
