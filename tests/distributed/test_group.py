"""Processes that find each other, talk, and fail: always with a clear error, within a bounded time."""

from __future__ import annotations

import functools
import operator
import socket
from typing import Any

import pytest
import torch
from ranks import Ranks

from embstore.distributed import ALONE, joined
from embstore.errors import GroupError

QUICK = {"EMBSTORE_JOIN_SECONDS": "2", "EMBSTORE_GROUP_SECONDS": "2"}


def test_a_process_without_a_world_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as group:
        assert group == ALONE
    rows = torch.arange(3)
    assert (group.alone, group.first, list(group.share(3))) == (True, True, [0, 1, 2])
    assert group.sum(rows) is rows
    assert group.gather(rows) == group.collect(rows) == group.exchange([rows]) == [rows]
    assert group.any(True, False) == (True, False)
    assert (group.told(7), group.tell(7), group.lead(lambda: 7), group.each(lambda: 7)) == (7, [7], 7, [7])
    assert group.together(lambda: rows) is rows
    group.barrier()


@pytest.mark.parametrize("world", [2, 3])
def test_what_ranks_tell_each_other(ranks: Ranks, world: int) -> None:
    found = ranks.run(world, "talk")
    for rank, said in enumerate(found):
        assert said["sum"] == [sum(range(world))]
        assert said["any"] == [True, False]
        assert said["exchange"] == [[[10 * of + rank] * 2] * (of + 1) for of in range(world)]
        assert said["gather"] == [list(range(of)) for of in range(world)]
        assert said["collect"] == ([[of] for of in range(world)] if rank == 0 else [[]] * world)
        assert said["told"] == {"from": 0}
        assert said["tell"] == [f"rank {of}" for of in range(world)]
    assert functools.reduce(operator.iadd, (said["share"] for said in found), []) == list(range(10))


def test_what_rank_0_does_for_all(ranks: Ranks) -> None:
    assert ranks.run(2, "lead", error="") == [{"done": 0}] * 2
    for answer in ranks.answers(2, "lead", error="DataError"):
        assert (answer["error"], answer["text"]) == ("DataError", "row 7; expected a label; found none; drop it")
    first, second = ranks.answers(2, "lead", error="OSError")
    assert (first["error"], first["text"]) == ("OSError", "[Errno 28] disk full: 'table'")
    assert (second["error"], second["text"]) == ("OSError", "[Errno 28] disk full (on rank 0): 'table'")
    first, second = ranks.answers(2, "lead", error="KeyError")
    assert (first["error"], first["text"]) == ("KeyError", "'row 7'")
    assert (second["error"], second["text"]) == ("LostRankError", "rank 0 could not go on; found KeyError: 'row 7'")


def test_what_each_rank_does(ranks: Ranks) -> None:
    assert ranks.run(2, "each", error="") == [[{"done": 0}, {"done": 1}]] * 2
    for answer in ranks.answers(3, "each", error="DataError"):
        assert (answer["error"], answer["text"]) == ("DataError", "row 7; expected a label; found none; drop it")
    first, second = ranks.answers(2, "each", error="OSError")
    assert (first["error"], first["text"]) == ("OSError", "[Errno 28] disk full (on rank 1): 'table'")
    assert (second["error"], second["text"]) == ("OSError", "[Errno 28] disk full: 'table'")
    first, second = ranks.answers(2, "each", error="KeyError")
    assert (first["error"], first["text"]) == ("LostRankError", "rank 1 could not go on; found KeyError: 'row 7'")
    assert (second["error"], second["text"]) == ("KeyError", "'row 7'")
    # Where several fail, all hear of the first: what they do about it must be the same.
    first, second, third = ranks.answers(3, "each", error="DataError, OSError")
    assert [answer["error"] for answer in (first, second, third)] == ["DataError"] * 3


@pytest.mark.parametrize(("case", "by"), [("lead", 0), ("each", 1), ("told", 0), ("told", 1)])
def test_what_json_can_not_hold_is_an_error_on_every_rank(ranks: Ranks, case: str, by: int) -> None:
    """Not on one of them, for which the others would wait."""
    answers = ranks.answers(2, case, **({"by": by} if case == "told" else {"error": "a set"}))
    own, other = answers[by], answers[1 - by]
    assert (own["error"], own["text"]) == ("TypeError", "Object of type set is not JSON serializable")
    assert other["error"] == "LostRankError"
    assert other["text"].startswith(f"rank {by} could not go on; found TypeError: Object of type set")


def _refused(answers: list[dict[str, Any]], error: str, *texts: str, within: float = 60.0) -> None:
    for answer in answers:
        assert answer["error"] == error, answer
        assert all(text in answer["text"] for text in texts), answer
        assert answer["seconds"] < within


def test_an_unreachable_master(ranks: Ranks) -> None:
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        port = {"MASTER_PORT": str(held.getsockname()[1])}
        answers = ranks.answers(2, "nothing", ranks=(1,), environment={**QUICK, **port}, seconds=240)
    _refused(answers, "GroupError", "rank 1 of 2 at 127.0.0.1:", "expected the master within 2 s")


def test_a_rank_that_never_comes(ranks: Ranks) -> None:
    answers = ranks.answers(3, "nothing", ranks=(0, 1), environment=QUICK, seconds=240)
    _refused(answers, "GroupError", "expected rank 2 within 2 s (EMBSTORE_JOIN_SECONDS)")


@pytest.mark.parametrize("on", [0, 1])
def test_other_versions(ranks: Ranks, on: int) -> None:
    answers = ranks.answers(2, "nothing", with_="other versions", on_rank=on, seconds=240)
    _refused(answers, "GroupError", "rank 1 on", "torchrec 0.1", "install the same packages everywhere")


def test_a_rank_that_can_not_load_torchrec(ranks: Ranks) -> None:
    answers = ranks.answers(2, "nothing", with_="no torchrec", on_rank=1, seconds=240)
    _refused(answers, "GroupError", "rank 1 on", "can't train", "torchrec can't be loaded")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE; expected a whole number, 1 or more; found 'two'"),
        ({"RANK": "5"}, "RANK; expected less than WORLD_SIZE=2; found 5"),
        ({"RANK": "-1"}, "RANK; expected a whole number, 0 or more; found '-1'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR; expected the address of rank 0; found none; start it with torchrun"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT; expected a whole number"),
        ({"EMBSTORE_JOIN_SECONDS": "soon"}, "EMBSTORE_JOIN_SECONDS; expected seconds, more than 0; found 'soon'"),
    ],
)
def test_variables_that_can_not_be(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str) -> None:
    good = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**good, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GroupError) as raised, joined():
        pass
    assert str(raised.value).startswith(message)


def test_a_rank_that_hangs(ranks: Ranks) -> None:
    zero, _ = ranks.answers(2, "hang", environment=QUICK, seconds=240)
    _refused([zero], "LostRankError", "rank 0 of 2 lost another")


def test_a_rank_that_fails(ranks: Ranks) -> None:
    zero, one = ranks.answers(2, "fail", ends=True, seconds=240)
    _refused([one], "DataError", "row 7")
    _refused([zero], "LostRankError", "rank 0 of 2 lost another")


def test_a_rank_that_dies(ranks: Ranks) -> None:
    zero, one = ranks.answers(2, "die", seconds=240)
    assert one == {"died": -9}
    _refused([zero], "LostRankError", "rank 0 of 2 lost another")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with (
        pytest.raises(GroupError, match="device cuda:0; expected a GPU of that number; found 0 GPUs"),
        joined(device="cuda"),
    ):
        pass
