"""Machines and rates that can't be."""

from __future__ import annotations

from pathlib import Path

import pytest
from planned import PLAIN

from embstore.errors import ConfigError
from embstore.planning import (
    MACHINES,
    Workload,
    machine,
    predict,
    read_rates,
)


def test_machines_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="world; expected 1 rank or more; found 0"):
        predict(Workload(rows=1, dim=4), PLAIN, 0)
    with pytest.raises(ConfigError, match="unknown device 'h10'; did you mean 'h100'"):
        machine("h10")
    with pytest.raises(ConfigError, match="intra_gbps; expected a number, more than 0; found 0"):
        machine("cuda", intra_gbps=0)
    with pytest.raises(ConfigError, match="link_share; expected at most 1"):
        machine("cuda", link_share=1.5)
    rates = tmp_path / "rates.json"
    for text, message in (
        ("{", "expected valid JSON"),
        ("[1]", "expected an object"),
        ('{"intra_gps": 3}', "unknown rate 'intra_gps'; did you mean 'intra_gbps'"),
        ('{"intra_gbps": "fast"}', "expected a number"),
        ('{"memory_gbps": NaN}', "expected a number"),
    ):
        rates.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_rates(rates)
    with pytest.raises(ConfigError, match=r"rates .*none\.json; expected a JSON file"):
        read_rates(tmp_path / "none.json")
    rates.write_text('{"intra_gbps": 3.5, "collective_us": 55}')
    measured = machine("cpu", read_rates(rates), inter_gbps=2)
    assert (measured.intra_gbps, measured.inter_gbps, measured.collective_us) == (3.5, 2, 55)
    assert measured.memory_gbps == MACHINES["cpu"].memory_gbps
