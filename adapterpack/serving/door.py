"""The front door's way to the replicas: a bounded number of requests in hand, and another replica where one dies.

Ray Serve sends a request again by itself only while no replica has accepted it. A replica that dies with a request in
hand ends it with an error, so it is asked again here: to classify an image twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from adapterpack.serving.answers import Answer, Told, model_id
from adapterpack.serving.metrics import Metrics
from adapterpack.serving.question import Question
from adapterpack.serving.refusals import Unavailable
from adapterpack.serving.settings import Settings

_ATTEMPTS = 5  # an image that kills what decodes it must not kill every replica
_PAUSE = 0.1  # seconds before the second attempt, twice as long before the third, and so on


class Door:
    """To one application.

    Args:
        handle: of its replicas.
        settings: of the service.
        metrics: where retries and batches are counted.
    """

    def __init__(self, handle: Any, settings: Settings, metrics: Metrics) -> None:
        self._handle, self._settings, self._metrics = handle, settings, metrics
        self._in_hand = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places for requests; taken before a body is read, so that memory is bounded as well.

        Raises:
            Unavailable: there is none.
        """
        if self._in_hand >= self._settings.capacity:
            raise Unavailable(f"{self._in_hand} requests are waiting already; try again in a moment")
        self._in_hand += 1
        self._metrics.in_hand.set(self._in_hand)
        try:
            yield
        finally:
            self._in_hand -= 1
            self._metrics.in_hand.set(self._in_hand)

    @property
    def in_hand(self) -> int:
        """Requests that have a place."""
        return self._in_hand

    async def classify(self, question: Question) -> Answer:
        """The answer.

        Raises:
            AdapterPackError: what the replica says is wrong with the image or the task.
            Unavailable: overloaded, too late, or every replica that was asked died.
        """
        handle = self._handle
        if question.folded:
            handle = handle.options(multiplexed_model_id=model_id(question.task))
        arguments = (question.data, question.task, question.top)
        answer: Answer = await self._asked(lambda: handle.classify.remote(*arguments, folded=question.folded))
        self._metrics.computed(answer.batch)
        return answer

    async def examine(self, data: bytes) -> None:
        """Whether the backbone takes a file.

        Raises:
            AdapterPackError: it does not, and why.
            Unavailable: as `classify`.
        """
        await self._asked(lambda: self._handle.examine.remote(data))

    async def _asked(self, ask: Any) -> Any:
        try:
            found = await asyncio.wait_for(self._answer(ask), self._settings.most_seconds)
        except asyncio.TimeoutError as error:
            raise Unavailable(f"no answer within {self._settings.most_seconds:g} seconds", 504) from error
        if isinstance(found, Told):
            raise found.error()
        return found

    async def _answer(self, ask: Any) -> Any:
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(_PAUSE * attempt)  # until Ray knows which replica it is that died
            try:
                return await ask()
            except BackPressureError as error:
                raise Unavailable("too many requests are waiting; try again in a moment") from error
            except DeploymentUnavailableError as error:
                raise Unavailable("the replicas cannot be started") from error
            except RayActorError:
                self._metrics.retried()
        raise Unavailable(f"{_ATTEMPTS} replicas died with this request")
