"""What selections are worth: quality of models trained again on what was kept, by method, share kept and seed.

    Trial(method, kept, seed, valid, test) ... ──Report──> summary (JSON) ──> one HTML page with its plot

The curve of a method is its quality by share kept, ended by that of the full model at 1. As in ERASE (Jia et al. 2024,
"ERASE: Benchmarking Feature Selection Methods for Deep Recommender Systems") one number sums it up:

    AUKC = integral of (AUC - 1/2) / (1/2) over the shares from the least measured one to 1 / the length of that range

by trapezoids; 1 where the AUC is 1 at every share, 0 where it is that of chance. It compares methods over the same
shares alone. Which method is the best is said by validation, never by test.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from embstore.errors import ConfigError, nearest

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
tr.best td { font-weight: bold } img { max-width: 100% } .note { color: #666 }
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model trained again.

    Args:
        method: that chose what was kept.
        kept: share of the values (or fields), 0 to 1.
        seed: of the training.
        valid, test: its AUC.
    """

    method: str
    kept: float
    seed: int
    valid: float
    test: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Trials on one data set.

    Args:
        title: what it is of.
        of: what was chosen, ``"values"`` or ``"fields"``.
        full: by seed the model that keeps all.
        trials: each method has all seeds at each share.

    Raises:
        ConfigError: a trial twice, one missing, or a share that is none.
    """

    title: str
    trials: tuple[Trial, ...]
    full: dict[int, Trial]
    of: str = "values"

    def __post_init__(self) -> None:
        seen = {(one.method, one.kept, one.seed) for one in self.trials}
        wanted = {(name, kept, seed) for name in self.methods for kept in self.shares for seed in self.full}
        if not self.trials or len(seen) < len(self.trials) or seen != wanted:
            found = f"{len(self.trials):,} for {len(wanted):,}"
            raise ConfigError("trials of a report", expected="one of each method, share and seed", found=found)
        if not all(0 < kept < 1 for kept in self.shares):
            raise ConfigError("shares kept", expected="above 0, below 1", found=str(self.shares))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """In the order they were tried."""
        return tuple(dict.fromkeys(one.method for one in self.trials))

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Ascending."""
        return tuple(sorted({one.kept for one in self.trials}))

    def quality(self, method: str, kept: float, *, split: str = "test") -> list[float]:
        """AUC by seed, in the order of ``full``.

        Raises:
            ConfigError: no such method.
        """
        if method not in self.methods:
            raise ConfigError(f"no method {method!r}", do=nearest(method, self.methods))
        of = {one.seed: getattr(one, split) for one in self.trials if (one.method, one.kept) == (method, kept)}
        return [of[seed] for seed in self.full]

    def difference(self, method: str, kept: float, *, to: str | None = None, split: str = "test") -> list[float]:
        """AUC less that of another method at the same share, or of the full model; by seed."""
        other = (
            [getattr(one, split) for one in self.full.values()] if to is None else self.quality(to, kept, split=split)
        )
        return [a - b for a, b in zip(self.quality(method, kept, split=split), other, strict=True)]

    def aukc(self, method: str, *, split: str = "test") -> list[float]:
        """The area under the curve, by seed."""
        out = []
        for number, full in enumerate(self.full.values()):
            curve = [self.quality(method, kept, split=split)[number] for kept in self.shares]
            kept = np.array([*self.shares, 1.0])
            lift = 2 * np.array([*curve, getattr(full, split)]) - 1
            out.append(float(np.trapezoid(lift, kept) / (kept[-1] - kept[0])))
        return out

    def best(self, methods: Sequence[str] | None = None) -> str:
        """Of these methods, or of all, the one of the largest mean AUKC on validation."""
        among = self.methods if methods is None else methods
        return max(among, key=lambda name: statistics.fmean(self.aukc(name, split="valid")))

    def summary(self) -> dict[str, Any]:
        """All of it as plain numbers, means and deviations over seeds."""
        full = {split: _spread([getattr(one, split) for one in self.full.values()]) for split in ("valid", "test")}
        methods = {}
        for name in self.methods:
            curve = {
                f"{kept:g}": {
                    **{split: _spread(self.quality(name, kept, split=split)) for split in ("valid", "test")},
                    "against_full": _spread(self.difference(name, kept)),
                }
                for kept in self.shares
            }
            areas = {split: _spread(self.aukc(name, split=split)) for split in ("valid", "test")}
            methods[name] = {"kept": curve, "aukc": areas}
        return {
            "title": self.title,
            "of": self.of,
            "seeds": list(self.full),
            "shares": list(self.shares),
            "full": full,
            "methods": methods,
            "best": self.best(),
            "trials": [asdict(one) for one in self.trials],
            "full_trials": [asdict(one) for one in self.full.values()],
        }

    def plot(self, axes: Any) -> None:
        """Test AUC by share kept, into axes of matplotlib; bars are deviations over seeds."""
        full = [one.test for one in self.full.values()]
        looks = itertools.product(("-", "--", ":"), (f"C{number}" for number in range(10)))  # no two curves alike
        for name, (style, color) in zip(self.methods, looks, strict=False):
            curve = [self.quality(name, kept) for kept in self.shares]
            middle = [statistics.fmean(of) for of in (*curve, full)]
            spread = [_deviation(of) or 0.0 for of in (*curve, full)]
            look = {"linestyle": style, "color": color, "marker": "o", "markersize": 3, "capsize": 2}
            axes.errorbar([*self.shares, 1.0], middle, yerr=spread, label=name, **look)
        axes.axhline(statistics.fmean(full), color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=self.title, xlabel=f"share of {self.of} kept", ylabel="test AUC")
        axes.legend(fontsize="small")


def write_report(reports: Sequence[Report], folder: str | Path) -> None:
    """Write ``report.json`` and ``report.html``, a page that needs nothing else.

    Raises:
        ConfigError: matplotlib isn't there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps([one.summary() for one in reports], indent=1) + "\n")
    (folder / "report.html").write_text(html(reports))


def html(reports: Sequence[Report]) -> str:
    """The page."""
    parts = [f"<h1>What selections are worth</h1>{_legend()}"]
    for one in reports:
        parts.append(f"<h2>{escape(one.title)}</h2>{_image(one)}{_table(one)}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Selections</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _legend() -> str:
    return (
        '<p class="note">Test AUC of models trained again on what was kept, mean &plusmn; deviation over seeds. AUKC: '
        "the area under 2 AUC &minus; 1 over the shares kept, by the range's length. Bold: the largest AUKC on "
        "validation, by which methods are compared.</p>"
    )


def _table(report: Report) -> str:
    best, summary = report.best(), report.summary()
    heads = "".join(f"<th>{kept:.0%} kept</th>" for kept in report.shares)
    rows = []
    for name in sorted(report.methods, key=lambda one: -summary["methods"][one]["aukc"]["valid"]["mean"]):
        of = summary["methods"][name]
        cells = "".join(f"<td>{_shown(of['kept'][f'{kept:g}']['test'])}</td>" for kept in report.shares)
        chosen = ' class="best"' if name == best else ""
        areas = f"<td>{_shown(of['aukc']['test'])}</td><td>{_shown(of['aukc']['valid'])}</td>"
        rows.append(f"<tr{chosen}><td>{escape(name)}</td>{cells}{areas}</tr>")
    full = _shown(summary["full"]["test"])
    return (
        f"<p>All {escape(report.of)}: {full}, {len(report.full)} seed(s).</p><table><tr><th>method</th>{heads}"
        f"<th>AUKC</th><th>AUKC, validation</th></tr>{''.join(rows)}</table>"
    )


def _image(report: Report) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        do = "pip install 'embstore[graphs]'"
        raise ConfigError("plots", expected="matplotlib", found=str(error), do=do) from error
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    report.plot(figure.subplots())
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=120, metadata={"Software": None})
    return (
        f'<img alt="{escape(report.title)}" src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}">'
    )


def _spread(of: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(of), "deviation": _deviation(of)}


def _deviation(of: Sequence[float]) -> float | None:
    return statistics.stdev(of) if len(of) > 1 else None


def _shown(of: dict[str, float | None]) -> str:
    text = f"{of['mean']:.5f}"
    return text if of["deviation"] is None else f"{text} &plusmn; {of['deviation']:.5f}"
