"""What both protocols ask: one server of one store.

http.py ──┐
          ├──> Server ──> Versions ──> Reader ──> service.infer
grpc.py ──┘      access, limits, metrics, logs
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from embstore.errors import UnknownModelError, nearest
from embstore.serving.access import Access
from embstore.serving.metrics import Metrics
from embstore.serving.outcomes import OK, Outcome, message_of, outcome_of
from embstore.serving.protocol import InferRequest, InferResponse, Limits
from embstore.serving.reader import Reader
from embstore.serving.service import infer, searches
from embstore.serving.versions import Versions
from embstore.store import VersionInfo
from embstore.store.state import PRODUCTION
from embstore.store.values import element_type

log = logging.getLogger("embstore.serving")

_T = TypeVar("_T")
_MESSAGE = 2000  # characters
SMALL_VALUES = 4096  # requests of no more are answered at once; others by a thread, beside them


@dataclass(kw_only=True)
class Server:
    """Answers requests; of one asyncio loop.

    Args:
        name: of the model, as requests name it.
        versions: what is answered from.
        access: who may.
        limits: how much.
        metrics: what is counted.
        threads: for what takes long.
        ending: no longer ready, so that balancers look elsewhere; what still comes is answered.
    """

    name: str
    versions: Versions
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    threads: int = 4
    ending: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="serving")

    async def infer(self, request: InferRequest, encode: Callable[[InferResponse], _T]) -> _T:
        """Answer a request.

        Args:
            encode: makes of a response what travels; where a thread answers it encodes too, so that no more responses
                wait than there are threads.

        Raises:
            RequestError, LimitError, DeadlineError, VersionNotFoundError: and what ``service.infer`` raises.
        """
        self.check_model(request.model)
        reader = self.versions.ready(request.version)
        if reader is None:
            reader = await self.run(lambda: self.versions.get(request.version))
        small = sum(tensor.size() for tensor in request.inputs) <= SMALL_VALUES and not searches(request)
        if small and not reader.waits:
            return encode(infer(request, reader, self.limits))
        return await self.run(lambda: encode(infer(request, reader, self.limits)))

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do what takes long in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def check_model(self, name: str) -> None:
        """Raise ``UnknownModelError`` unless it is the server's model."""
        if name != self.name:
            raise UnknownModelError(f"model {name!r}", do=nearest(name, [self.name]))

    def is_ready(self, ref: str = "") -> bool:
        """Whether requests can be answered."""
        return not self.ending and self.versions.ready(ref) is not None

    def metadata(self, reader: Reader) -> dict[str, Any]:
        """The model's inputs and outputs, as the protocol describes them."""
        return {
            "name": self.name,
            "versions": sorted(set(self.versions.loaded().values())),
            "platform": "embstore",
            **describe(reader),
        }

    def promote(self, ref: str, alias: str = PRODUCTION) -> VersionInfo:
        """``Store.promote``, seen by this process at once; other processes see it when they look."""
        info = self.versions.store.promote(ref, alias)
        self.versions.look()
        return info

    def rollback(self, alias: str = PRODUCTION) -> VersionInfo:
        """``Store.rollback``, likewise."""
        info = self.versions.store.rollback(alias)
        self.versions.look()
        return info

    def ended(self, protocol: str, started: float, error: BaseException | None, **about: Any) -> Outcome:
        """Count and log how a request ended that began at ``perf_counter()`` ``started``."""
        outcome = OK if error is None else outcome_of(error)
        seconds = perf_counter() - started
        self.metrics.request(protocol, outcome.name, seconds, about.get("values", 0))
        if outcome.name == "internal":
            log.error("request failed", extra={"fields": {"protocol": protocol, **about}}, exc_info=error)
        elif log.isEnabledFor(logging.DEBUG):
            shown = {"protocol": protocol, "outcome": outcome.name, "seconds": round(seconds, 6), **about}
            shown |= {"error": str(error)} if error is not None else {}
            log.debug("request", extra={"fields": shown})
        return outcome

    def message(self, error: BaseException) -> str:
        """What to tell who asked."""
        return self.told(message_of(error))

    def told(self, text: str) -> str:
        """A text as who asked may see it; where the store lies, a whole path or a URI, is not theirs to know."""
        for where in (str(self.versions.store.place), str(self.versions.store.root)):
            if "://" in where or where.startswith("/"):  # others, as ``store`` or ``.``, are words of any text
                text = text.replace(where, self.name)
        return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 3]}..."

    def close(self) -> None:
        """End the threads."""
        self.versions.close()
        self._pool.shutdown()


def describe(reader: Reader) -> dict[str, Any]:
    """Inputs and outputs, each ``{"name", "datatype", "shape"}``."""
    schema, plan = reader.version.schema, reader.version.plan
    inputs, outputs = [], []
    for feature in schema.features:
        inputs.append({"name": feature.name, "datatype": datatype_of(reader, feature.name), "shape": [-1]})
        of = plan.slices[feature.name]
        outputs.append({"name": f"{feature.name}.embedding", "datatype": "FP32", "shape": [-1, of.stop - of.start]})
        outputs.append({"name": f"{feature.name}.status", "datatype": "UINT8", "shape": [-1]})
        if feature.name in reader.indexes:
            found = {"name": f"{feature.name}.neighbors", "datatype": datatype_of(reader, feature.name)}
            outputs += [
                {**found, "shape": [-1, -1]},
                {"name": f"{feature.name}.scores", "datatype": "FP32", "shape": [-1, -1]},
            ]
    inputs += [{"name": column.name, "datatype": "FP32", "shape": [-1]} for column in schema.dense]
    outputs.append({"name": "embedding", "datatype": "FP32", "shape": [-1, plan.width]})
    if reader.scores:
        outputs.append({"name": "score", "datatype": "FP32", "shape": [-1]})
    return {"inputs": inputs, "outputs": outputs}


def features(reader: Reader) -> list[dict[str, Any]]:
    """What a caller must know of each feature to ask for it; whether its values are known, and searched."""
    version = reader.version
    return [
        {
            "name": feature.name,
            "datatype": datatype_of(reader, feature.name),
            "width": version.plan.slices[feature.name].stop - version.plan.slices[feature.name].start,
            "list": "list" in (reader.trained_on(feature.name) or ""),
            "values": feature.name in version.vocabulary_info,
            "searched": feature.name in reader.indexes,
        }
        for feature in version.schema.features
    ]


def datatype_of(reader: Reader, feature: str) -> str:
    """What a feature's values travel as: as it was trained on."""
    kind = element_type(reader.trained_on(feature) or "string")
    integers = reader.feature(feature).transform is not None or kind.startswith(("int", "uint", "bool"))
    return "INT64" if integers else "BYTES"
