"""How ``embstore plan --vocabulary`` prints what it finds."""

from __future__ import annotations

from embstore.cli.console import out, plain_table
from embstore.planning.collisions import Sizing


def show_collisions(found: Sizing) -> None:
    """A line for each feature, then the whole, shared and split."""
    rows = [
        [
            of.cardinality.name,
            f"{of.cardinality.values:,}",
            f"{of.cardinality.lookups}",
            f"{of.shared.pairs:,.1f}",
            f"{of.shared.values:,.1f}",
            f"{of.shared.share:.2%}",
            f"{of.shared.wholly:,.1f}",
            f"{of.split.share:.2%}",
            f"{of.exact_rows:,} rows" if of.exact else "",
        ]
        for of in found.features
    ]
    titles = ["feature", "values", "lookups", "pairs", "share a row", "of values", "all rows", "split", "exact block"]
    out.print(f"{found.rows:,} rows; expected, of values of the same feature\n", highlight=False)
    out.print(plain_table(titles, rows, numbers=True), highlight=False)
    both = [
        [
            name,
            f"{near:,.1f}",
            f"{of.pairs:,.1f}",
            f"{of.values:,.1f}",
            f"{of.share:.2%}",
            _share(of.occurrences),
            _rows(needed),
        ]
        for name, near, of, needed in (
            ("one table (sum of N_f^2 / 2M)", found.approximate_shared, found.shared, found.shared_rows),
            ("a table for each feature (N^2 / 2M)", found.approximate_split, found.split, found.split_rows),
        )
    ]
    titles = [
        "",
        "approximately",
        "pairs",
        "share a row",
        "of values",
        "of occurrences",
        f"rows for {found.target:.0%}",
    ]
    out.print("")
    out.print(plain_table(titles, both, numbers=True), highlight=False)
    exact = [of for of in found.features if of.exact]
    if exact:
        names, taken = ", ".join(of.cardinality.name for of in exact), sum(of.exact_rows for of in exact)
        out.print(
            f"\nexact: true pays for {names}: {taken:,} of the rows; "
            f"of the other features' values {found.after_exact.share:.2%} then share a row",
            highlight=False,
            markup=False,
        )


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _rows(rows: int | None) -> str:
    return "beyond 2^48" if rows is None else f"{rows:,}"
