"""Training on a Ray cluster: workers launched, watched and, when one dies, started again by Ray Train.

    embstore train config.yaml --workers 8

    driver ── RunConfig ──> Ray Train ──> worker 0 .. N-1: joined() ── Run.train()
      │                       └─ one died: the whole group again, from the run's last checkpoint
      └── Mailbox: what worker 0 shows, the result or the error; Ctrl-C

Rows trained after the last checkpoint are forgotten with the workers and trained again, so each counts once in what the
run ends with, which is what an undisturbed run ends with. The run's folder and its logs must lie where all workers find
them by the same path: on one machine, a shared file system or, the logs, in a bucket. Workers of several hosts publish
to a folder that they share.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
import traceback
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from embstore.continuous import place_of
from embstore.ctr import BuildNetwork
from embstore.distributed import group_seconds, joined
from embstore.errors import EmbstoreError, GroupError, Interrupted, LostRankError
from embstore.interruption import Interruption
from embstore.progress import Progress, no_progress
from embstore.run import Run
from embstore.settings import RunConfig

from .cluster import cluster
from .mailbox import Letters, Mailbox, Reader, listening

_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT}  # starting again mends none
_POLL_SECONDS, _ANSWER_SECONDS = 0.2, 120.0


def train(
    config: RunConfig,
    build_network: BuildNetwork,
    *,
    workers: int,
    gpus: bool = False,
    restarts: int = 3,
    address: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train a run on ``workers`` processes of a Ray cluster, or go on with it.

    Args:
        config: of the run; a step's batch is that of all workers together.
        build_network: ``embstore.models.build``, or anything called as it is; sent to the workers.
        workers: processes, each with a core of its own, or a GPU.
        gpus: one for each worker, where its part of the table and the network lie.
        restarts: of the group after a worker died, before the run is given up; -1 for any number.
        address: of the cluster. By default the one this process is connected to, else that of ``RAY_ADDRESS``, else one
            started here for this run, with as many cores as workers.
        progress: shown here, of worker 0.

    Returns:
        What ``Run.train`` does.

    Raises:
        GroupError: Ray isn't installed, the cluster can't be reached or is too small, or workers died too often; the
            same call goes on from the last checkpoint.
        EmbstoreError: as ``Run.check`` raises it here, or ``Run.train`` on a worker.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    if workers < 1:
        raise GroupError("workers", expected="1 or more", found=str(workers))
    ray = load_ray()
    Run(config, build_network).check()  # a cluster takes a while to say so
    asked = Interruption()
    with (
        cluster(ray, address, cpus=workers, processes=workers, what="workers", error=GroupError),
        tempfile.TemporaryDirectory(prefix="embstore-ray-") as storage,
        asked.watched(),
    ):
        _check_room(ray, workers, gpus)
        progress.say(f"starting {_counted(workers, 'worker')}")
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=_here(ray))(Mailbox).remote()
        settings = {"config": _everywhere(config), "build": build_network, "mailbox": mailbox, "gpus": gpus}
        try:
            failures = _fit(ray, mailbox, _trainer(settings, workers, gpus, restarts, storage), progress, asked)
            result, error = ray.get(mailbox.ended.remote(), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as lost:
            raise _gone(config, lost, asked.asked()) from lost
    if error is not None:
        raise error
    if result is None:
        raise GroupError(
            f"the run in {config.output} was given up",
            expected=f"its {_counted(workers, 'worker')} to end, with at most {_counted(restarts, 'restart')}",
            found=_reason(failures),
            do="the same command goes on from the last checkpoint",
        ) from (failures[0] if failures else None)
    done: dict[str, Any] = result
    return done


def _work(settings: dict[str, Any]) -> None:
    """On each worker."""
    import ray

    mailbox = settings["mailbox"]
    if ray.get(mailbox.over.remote()):  # what is wrong with the run itself is not mended by starting again
        return
    try:
        with joined(device="cuda" if settings["gpus"] else "cpu") as group:
            progress = Letters(mailbox) if group.first else no_progress
            asked = Interruption()
            with listening(mailbox, ray.get, stop=asked.ask, leave=lambda: os._exit(1)):
                run = Run(settings["config"], settings["build"], progress=progress, group=group, interruption=asked)
                try:
                    ended: dict[str, Any] = {"result": run.train()}
                except Interrupted as stopped:
                    ended = {"error": stopped}
        if group.first:  # when all are done: who is still at work a while after the end is taken for lost
            ray.get(mailbox.end.remote(**ended))
    except LostRankError:
        if not ray.get(mailbox.over.remote()):
            raise  # Ray starts the group again
    except EmbstoreError as error:
        ray.get(mailbox.end.remote(error=error))
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        do = "mend it; the same command goes on from the last checkpoint"
        ray.get(mailbox.end.remote(error=GroupError("a file can't be used", found=str(error), do=do)))
    except Exception:
        ray.get(mailbox.post.remote("say", traceback.format_exc()))
        raise


def _here(ray: Any) -> Any:
    """On the driver's own node: a node that is lost takes workers, not the mailbox."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _trainer(settings: dict[str, Any], workers: int, gpus: bool, restarts: int, scratch: str) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRun
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _work,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=ceil(group_seconds())),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RayRun(
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=restarts,
                controller_failure_limit=restarts,  # type: ignore[call-arg]  # Ray's stubs are of an earlier Ray Train
            ),
        ),
    )


def _fit(ray: Any, mailbox: Any, trainer: Any, progress: Progress, asked: Interruption) -> list[Exception]:
    """Run the trainer, showing what worker 0 shows; what Ray says went wrong. Ctrl-C lets the workers save first.

    Raises:
        ray.exceptions.RayError: the mailbox, on this node, doesn't answer: the cluster is gone.
    """
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray's own kinds, and what workers raised
            failures.append(error)

    thread = threading.Thread(target=fit, name="embstore-ray-train", daemon=True)
    reader, answer, told = Reader(mailbox, progress), partial(ray.get, timeout=_ANSWER_SECONDS), False
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            reader.read(answer)
            if asked.asked() and not told:
                told = True
                progress.say("stopping when the checkpoint is saved; Ctrl-C again stops at once")
                answer(mailbox.stop.remote())
        reader.read(answer)
    finally:
        reader.close()
    return failures


def _gone(config: RunConfig, lost: Exception, asked: bool) -> Exception:
    if asked:
        return Interrupted("stopped, and the Ray cluster with it; the last checkpoint counts, run again to go on")
    return GroupError(
        f"the Ray cluster that trained {config.output} is gone",
        expected="an answer of this node's",
        found=str(lost).strip().split("\n")[0] or type(lost).__name__,
        do="the same command goes on from the last checkpoint",
    )


def _reason(failures: list[Exception]) -> str:
    """The line that says most: of a worker that failed first, not of those that missed it."""
    lines = []
    for error in [cause for failure in failures for cause in _causes(failure)]:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # Ray colours some
        line = text.split("\n")[-1 if "Traceback" in text or text.startswith("ray::") else 0]
        lines.append(f"{type(error).__name__}: {line}")
    return next((line for line in lines if LostRankError.__name__ not in line), lines[0] if lines else "no result")


def _causes(failure: Exception) -> list[Exception]:
    """What Ray's ``WorkerGroupError`` or ``ControllerError`` came of."""
    workers: dict[int, Exception] = getattr(failure, "worker_failures", {})
    return list(workers.values()) or [getattr(failure, "controller_failure", failure)]


def _everywhere(config: RunConfig) -> RunConfig:
    """The run with whole paths, the schema read: workers have other working directories."""

    def whole(of: Any, *names: str) -> Any:
        """The same settings; of these places, those that are named."""
        there = {name: getattr(of, name) for name in names}
        return replace(of, **{name: str(place_of(place)) for name, place in there.items() if place is not None})

    return replace(
        config,
        logs=whole(config.logs, "train", "valid", "test"),
        schema=config.schema if config.schema is None else config.read_schema().to_dict(),
        table=replace(
            config.table, warm_start=tuple(whole(entry, "vectors", "store") for entry in config.table.warm_start)
        ),
        vocabulary=config.honoured and whole(config.honoured, "path", "store"),
        start=config.start and whole(config.start, "store"),
        publish=config.publish and whole(config.publish, "store"),
        output=str(Path(config.output).resolve()),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def load_ray() -> Any:
    """Ray, with what training needs of it.

    Raises:
        GroupError: it isn't installed.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray
        import ray.train.torch
    except ImportError as error:
        raise GroupError(
            "Ray can't be loaded", expected="ray with its train extra", found=str(error), do="pip install 'ray[train]'"
        ) from error
    return ray


def _check_room(ray: Any, workers: int, gpus: bool) -> None:
    """A group that can never be placed would be waited for without end."""
    kind = "GPU" if gpus else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there < workers:
        raise GroupError(
            "the Ray cluster is too small",
            expected=f"{_counted(workers, kind)} for as many workers" if workers > 1 else f"a {kind} for the worker",
            found=f"{there:g}",
            do="ask for fewer workers, or add nodes",
        )
