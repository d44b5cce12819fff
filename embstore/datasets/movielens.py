"""MovieLens 100K, 1M and latest (also 10M's successors 20M, 25M, 32M) as click data: did a user like a film.

A rating above 3 is a like (label 1), one below 3 is a dislike (0), and rows rated exactly 3 are dropped; rows go to train,
valid and test 80:10:10 at random. (AutoInt, Song et al. 2019, section 5.1, and the papers after it label MovieLens-1M so.)

All sizes give ``user_id, movie_id, timestamp, title, year, genres`` and the label; 100K and 1M also the user's ``gender, age,
occupation, zip_code``, latest also ``tags``: the five tags that most users gave the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from embstore.datasets.conversion import GROUP_ROWS, Raw, by_order, find, not_found, split_rows, text_table
from embstore.errors import DatasetError
from embstore.schema import Dense, Feature, Schema

SEED = 0
TAGS_PER_MOVIE = 5
RULE = f"ratings below 3 are 0, above 3 are 1, 3 is dropped; then 80% train, 10% valid, 10% test at random (seed {SEED})"
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
_LEFT_OUT = {
    "title": "left out: says no more than movie_id",
    "timestamp": "left out: when a rating was typed in, not when the film was seen",
}
_MOVIE_FEATURES = (Feature(name="year"), Feature(name="genres", pooling="mean", max_length=6))


def open_100k(source: Path) -> Raw:
    """From the official ``u.data, u.user, u.item``, or one joined ``ratings.parquet``."""
    official = [find(source, name) for name in ("u.data", "u.user", "u.item")]
    joined = source if source.suffix == ".parquet" else find(source, "ratings.parquet")
    schema = _schema("user_id", "movie_id", "gender", "occupation", "zip_code", age=Dense(name="age", scale="linear"))
    if all(official):
        data, users, movies = (path for path in official if path is not None)
        return _raw((data, users, movies), schema, lambda: (_ratings_100k(data), _users_100k(users), _movies_100k(movies)))
