"""Training on a Ray cluster: workers launched, watched and, when one dies, started again by Ray Train.

    embstore train config.yaml --workers 8

    driver ── RunConfig ──> Ray Train ──> worker 0 .. N-1: joined() ── Run.train()
      │                       └─ one died: the whole group again, from the run's last checkpoint
      └── Mailbox: what worker 0 shows, the result or the error; Ctrl-C

Rows trained after the last checkpoint are forgotten with the workers and trained again, so each counts once in what the
run ends with, which is what an undisturbed run ends with. The run's folder and its logs must lie where all workers find
them by the same path: on one machine, a shared file system or, logs and stores, in a bucket.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from embstore.continuous import place_of
from embstore.ctr import BuildNetwork
from embstore.distributed import joined
from embstore.errors import EmbstoreError, GroupError
from embstore.interruption import Interruption
from embstore.progress import Progress, no_progress
from embstore.run import Run
from embstore.settings import RunConfig

from .mailbox import Letters, Mailbox, Reader, when_stopped

_POLL_SECONDS = 0.2


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
        gpus: one for each worker.
        restarts: of the group after a worker died, before the run is given up; -1 for any number.
        address: of the cluster. By default the one this process is connected to, else that of ``RAY_ADDRESS``, else one
            started here for this run, with as many cores as workers.
        progress: shown here, of worker 0.

    Returns:
        What ``Run.train`` does.

    Raises:
        GroupError: Ray isn't installed, the cluster can't be reached or is too small, or workers died too often; the
            same call goes on from the last checkpoint.
        EmbstoreError: as ``Run.train`` raised it on a worker.
    """
    if workers < 1:
        raise GroupError("workers", expected="1 or more", found=str(workers))
    ray = _load_ray()
    with _cluster(ray, address, workers), tempfile.TemporaryDirectory(prefix="embstore-ray-") as scratch:
        _check_room(ray, workers, gpus)
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        settings = {"config": _everywhere(config), "build": build_network, "mailbox": mailbox}
        failures = _fit(ray, mailbox, _trainer(settings, workers, gpus, restarts, scratch), progress)
        result, error = ray.get(mailbox.ended.remote())
    if error is not None:
        raise error
    if result is None:
        found = failures[0] if failures else None
        raise GroupError(
            f"the run in {config.output} was given up",
            expected=f"its {workers} workers to end, with at most {restarts} restarts",
            found=str(found).strip().split("\n")[-1],
            do="the same command goes on from the last checkpoint",
        ) from found
    done: dict[str, Any] = result
    return done


def _work(settings: dict[str, Any]) -> None:
    """On each worker."""
    import ray

    mailbox = settings["mailbox"]
    if ray.get(mailbox.over.remote()):  # an error of the run itself: starting again would not mend it
        return
    try:
        with joined() as group:
            progress = Letters(mailbox) if group.first else no_progress
            asked = Interruption()
            listening = when_stopped(mailbox, ray.get, asked.ask)
            try:
                run = Run(settings["config"], settings["build"], progress=progress, group=group, interruption=asked)
                result = run.train()
            except GroupError:
                raise
            except EmbstoreError as error:  # known before the others miss this one
                ray.get(mailbox.end.remote(error=error))
                raise
            finally:
                listening.set()
        if group.first:
            ray.get(mailbox.end.remote(result=result))
    except EmbstoreError:
        if not ray.get(mailbox.over.remote()):
            raise  # Ray starts the group again


def _trainer(settings: dict[str, Any], workers: int, gpus: bool, restarts: int, scratch: str) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRun
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _work,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RayRun(storage_path=scratch, failure_config=FailureConfig(max_failures=restarts)),
    )


def _fit(ray: Any, mailbox: Any, trainer: Any, progress: Progress) -> list[Exception]:
    """Run the trainer, showing what worker 0 shows; what Ray says went wrong. Ctrl-C lets the workers save first."""
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray's own kinds, and what workers raised
            failures.append(error)

    thread = threading.Thread(target=fit, name="embstore-ray-train", daemon=True)
    reader = Reader(mailbox, progress)
    stopping = False
    thread.start()
    try:
        while thread.is_alive():
            try:
                thread.join(_POLL_SECONDS)
                reader.read(ray.get)
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                progress.say("stopping when the checkpoint is saved; Ctrl-C again stops at once")
                ray.get(mailbox.stop.remote())
        reader.read(ray.get)
    finally:
        reader.close()
    return failures


def _everywhere(config: RunConfig) -> RunConfig:
    """The run with whole paths, the schema read: workers have other working directories."""
    logs = replace(
        config.logs,
        **{name: str(place_of(source)) for name, source in vars(config.logs).items() if source is not None},
    )
    stores = {
        name: replace(of, store=str(place_of(of.store)))
        for name, of in (("start", config.start), ("publish", config.publish))
        if of is not None
    }
    schema = config.schema if config.schema is None else config.read_schema().to_dict()
    return replace(config, logs=logs, schema=schema, output=str(Path(config.output).resolve()), **stores)


def _load_ray() -> Any:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray
        import ray.train.torch
    except ImportError as error:
        raise GroupError(
            "Ray can't be loaded", expected="ray with its train extra", found=str(error), do="pip install 'ray[train]'"
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int) -> Iterator[None]:
    """A connection to the cluster; one started here ends with the run."""
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {} if where else {"num_cpus": max(workers, 1), "include_dashboard": False}
    try:
        ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **here)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise GroupError(
            f"no Ray cluster at {where or 'this machine'}",
            expected="one that can be reached",
            found=str(error).strip().split("\n")[0],
            do="see `ray status` there, or leave the address out to start one here",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, workers: int, gpus: bool) -> None:
    """A group that can never be placed would be waited for without end."""
    kind = "GPU" if gpus else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if there < workers:
        raise GroupError(
            "the Ray cluster is too small",
            expected=f"{workers} {kind}s for as many workers",
            found=f"{there:g}",
            do="ask for fewer workers, or add nodes",
        )
