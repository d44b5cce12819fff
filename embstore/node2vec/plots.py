"""Curves of a job, where matplotlib is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the loss of the lines of a job's metrics to a PNG; whether that could be done."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    known = [(line["step"], line["train_loss"]) for line in metrics if line["train_loss"] is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="walks", ylabel="loss of a window's contexts")
    axes.plot([step for step, _ in known], [loss for _, loss in known])
    axes.grid(alpha=0.3)
    partial = path.with_name(f".{path.name}")
    FigureCanvasAgg(figure).print_png(partial, metadata={"Software": None})
    os.replace(partial, path)
    return True
