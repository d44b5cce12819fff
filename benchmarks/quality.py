"""Test AUC on real data: the runs of ``configs/``, several seeds each, beside published results.

Needs the logs that ``embstore dataset frappe`` and ``embstore dataset movielens-1m`` make in ``data/``. Runs are kept
in ``runs/quality`` and are not trained again when they are finished. ``--quick`` trains one seed of the first.

The peers' values are their authors' means: BARS's result files (Frappe_x1, five seeds) and table 1 of Coleman et al.
2023 (MovieLens-1M, 1.6 MB, multiplexed). Frappe's train part is a reconstruction (98.7 % of the rows), valid and test
are BARS's own.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import Result, claim, main
from embstore import models
from embstore.errors import DatasetError
from embstore.run import Run
from embstore.settings import RunConfig

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Study:
    """A run of ``configs/CONFIG.yaml``, with or without its penalty, and what it is compared with."""

    name: str
    config: str
    seeds: int
    peer: str
    peer_value: float
    penalty: bool = True


BARS_DCN = {"peer": "BARS DCN-V2", "peer_value": 0.98382, "seeds": 5}
BARS_DNN = {"peer": "BARS DNN", "peer_value": 0.98404, "seeds": 5}
PAPER = {"peer": "Unified Embedding, multiplexed", "peer_value": 0.8774, "seeds": 3}
STUDIES = (
    Study(name="frappe", config="frappe", **BARS_DCN),
    Study(name="frappe_no_penalty", config="frappe", penalty=False, **BARS_DCN),
    Study(name="frappe_dnn", config="frappe-dnn", **BARS_DNN),
    Study(name="frappe_hashed", config="frappe-hashed", **BARS_DCN),
    Study(name="movielens_1m", config="movielens-1m", **PAPER),
)


def measure(quick: bool) -> Result:
    """Train and test every study."""
    claims, samples = {}, {}
    for study in STUDIES[:1] if quick else STUDIES:
        results = [_run(study, seed) for seed in range(1 if quick else study.seeds)]
        aucs = [result["test"]["auc"] for result in results]
        key = f"{study.name}_test_auc"
        claims[key] = claim(statistics.fmean(aucs), "AUC", study.peer, study.peer_value)
        samples[key] = {
            "test": aucs,
            "valid": [result["valid"]["auc"] for result in results],
            "deviation": statistics.stdev(aucs) if len(aucs) > 1 else None,
            "parameters": results[0]["parameters"],
        }
    return Result(
        claims=claims, samples=samples, settings={"configs": [study.name for study in STUDIES]}, packages=("torch",)
    )


def _run(study: Study, seed: int) -> dict[str, Any]:
    config = RunConfig.from_yaml(ROOT / "configs" / f"{study.config}.yaml")
    logs = {split: str(ROOT / path) for split, path in vars(config.logs).items()}
    folder = Path(config.logs.train).parent
    if not Path(logs["train"]).is_dir():
        raise DatasetError(
            f"logs of {study.config}",
            expected=config.logs.train,
            found="no such folder",
            do=f"make them: embstore dataset {folder.name} --from RAW --to {folder}",
        )
    config = replace(config, logs=replace(config.logs, **logs))
    if not study.penalty:
        table = config.table
        config = replace(config, table=replace(table, optimizer=replace(table.optimizer, l2=0.0)))
    return Run(
        config.with_seed(seed, str(ROOT / "runs" / "quality" / study.name / f"seed-{seed}")), models.build
    ).train()


if __name__ == "__main__":
    main("quality", measure)
