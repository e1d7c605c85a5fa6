"""From a request to a node and back: implements `backend.Backend`.

    a request is      until
    waiting           it has a credit; or its deadline, the bound of the queue, or its client ends it
    in flight         its last choice has finished; or the node, the engine, its deadline, a gap or its client ends it
    cancelled         the node confirms the end (its credits are held until then); or CONFIRM_S, or the node is lost

Each request ends once: it is recorded then, and its credits return then. A request is tried on one node only.
All methods run on the event loop and none of the callbacks from links blocks.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Protocol

from shoal.proto.v1 import fleet_pb2, generation_pb2, inference_pb2, link_pb2

from .answer import Answer, BufferFull
from .backend import GenerateOptions
from .calls import Calls
from .continuity import Broken, Continuity
from .errors import BadRequest, ControllerError, DeadlineExceeded, EngineFailed, NoCapacity, NodeLost, Unavailable
from .flight import Flight, flight_record, unplaced_record
from .lookup import check_against_model, require_served, served_models, wanted_of
from .node_error import error_of
from .node_view import node_message
from .registry import Registry
from .request_record import FINISH_WORDS, Recorder
from .router import Choice, Wanted, pick
from .wait_queue import QueueFull, Waiting, WaitQueue

CONFIRM_S = 1.5
"""A cancelled request whose node does not confirm within this counts as ended; its late outputs are dropped."""

RESTART_S = 2.0
"""Retry-After of a controller that is going away: its supervisor starts another within this."""

MAX_RETRY_AFTER_S = 60.0
TYPICAL_REQUEST_S = 2.0
"""Taken for Retry-After until requests have been measured."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait here, and how long."""

    max_waiting: int = 1024
    """Requests without a credit; the next one is refused at once, with Retry-After."""
    max_wait_s: float = 60.0
    """Time without a credit, where the client's deadline is not sooner."""


class Links(Protocol):
    """The streams to the nodes, as dispatch sees them."""

    def send(self, node_id: str, generation: int, frame: link_pb2.ControllerFrame) -> bool:
        """Queue the frame; False when that stream is over (its loss is then reported, or was)."""
        ...


class Dispatcher:
    """See the table above."""

    def __init__(self, registry: Registry, links: Links, recorder: Recorder, limits: Limits | None = None) -> None:
        self._registry = registry
        self._links = links
        self._recorder = recorder
        self._limits = limits or Limits()
        self._queue = WaitQueue(self._limits.max_waiting)
        self._placed: dict[Waiting, asyncio.Future[Choice]] = {}
        self._ids: set[str] = set()
        self._flights: dict[str, Flight] = {}
        self._calls = Calls(registry, links)
        self._mean_request_s = TYPICAL_REQUEST_S
        self._is_closing = False
        # Not the loop's clock: uvloop's has a resolution of a millisecond, and what is measured here is published.
        self._now = time.monotonic

    @property
    def num_waiting(self) -> int:
        """Requests without a credit."""
        return len(self._queue)

    # --- Backend ---

    async def generate(self, request: generation_pb2.GenerationRequest, options: GenerateOptions) -> Answer:
        """See `Backend.generate`."""
        received_at, wall = self._now(), time.time()
        try:
            if self._is_closing:
                raise _shutting_down()
            wanted = replace(wanted_of(self._registry, request, options.node_id), is_part=options.is_part)
            require_served(self._registry, wanted)
            check_against_model(self._registry, wanted, request)
            if options.request_id in self._ids:
                raise BadRequest("a request with this id is running", param="request_id", code="duplicate_request")
            if options.timeout_s is not None and options.timeout_s <= 0:
                raise DeadlineExceeded("the deadline had passed when the request came")
        except ControllerError as error:
            self._recorder.refuse(error.code)
            raise
        deadline = None if options.timeout_s is None else received_at + options.timeout_s
        self._ids.add(options.request_id)
        try:
            choice = await self._place(wanted, deadline)
        except BaseException as error:
            self._ids.discard(options.request_id)
            self._record_unplaced(options.request_id, wanted, received_at, wall, error)
            raise
        return self._send(request, options.request_id, wanted, choice, received_at, wall, deadline)

    async def tokenize(self, model: str, prompt: generation_pb2.Prompt) -> list[int]:
        """See `Backend.tokenize`."""
        return list((await self._calls.ask(model, link_pb2.Call(tokenize=prompt))).token_ids)

    async def detokenize(self, model: str, token_ids: list[int]) -> str:
        """See `Backend.detokenize`."""
        ids = generation_pb2.TokenIds(token_ids=token_ids)
        return (await self._calls.ask(model, link_pb2.Call(detokenize=ids))).text

    def models(self) -> list[inference_pb2.Model]:
        """See `Backend.models`."""
        return served_models(self._registry)

    def nodes(self) -> list[fleet_pb2.Node]:
        """See `Backend.nodes`; by id."""
        now = self._now()
        return [node_message(entry, now) for entry in sorted(self._registry, key=lambda entry: entry.id)]

    # --- placing ---

    async def _place(self, wanted: Wanted, deadline: float | None) -> Choice:
        """A choice whose credits are spent. Raises NoCapacity, DeadlineExceeded."""
        while True:
            choice = None if len(self._queue) else pick(wanted, self._registry.free(wanted.model, wanted.node_id))
            if choice is not None:
                self._registry.spend(choice.node, choice.credits)
            else:
                choice = await self._wait(wanted, deadline)
            # Between its placing and now the node may have gone: nothing was sent yet, so it is placed again.
            if self._registry.current(choice.node.id, choice.node.generation) is not None:
                return choice

    async def _wait(self, wanted: Wanted, deadline: float | None) -> Choice:
        now = self._now()
        try:
            waiting = self._queue.join(wanted, now)
        except QueueFull:
            message = f"{self._limits.max_waiting} requests wait already"
            raise NoCapacity(message, code="queue_full", retry_after_s=self._retry_after_s(wanted.model)) from None
        placed: asyncio.Future[Choice] = asyncio.get_running_loop().create_future()
        self._placed[waiting] = placed
        self.pump()
        patience_ends = now + self._limits.max_wait_s
        try:
            ends = patience_ends if deadline is None else min(deadline, patience_ends)
            async with asyncio.timeout(ends - now):
                return await placed
        except BaseException as error:
            if placed.done() and not placed.cancelled():
                given = placed.result()  # at the very moment of giving up
                self._registry.give_back(given.node.id, given.node.generation, given.credits)
            if not isinstance(error, TimeoutError):
                raise
            if deadline is not None and deadline <= patience_ends:
                raise DeadlineExceeded("the deadline passed while the request waited for a node") from None
            message = f"no node became free within {self._limits.max_wait_s:g} s"
            raise NoCapacity(message, retry_after_s=self._retry_after_s(wanted.model)) from None
        finally:
            self._queue.leave(waiting)
            self._placed.pop(waiting, None)
            # Whoever stood behind this one may have been kept from a node by it.
            self.pump()

    def pump(self) -> None:
        """Place whoever waits, as far as credits reach. Called whenever credits or nodes may have come."""
        if not len(self._queue):
            return
        for waiting, choice in self._queue.place(self._registry.free):
            self._registry.spend(choice.node, choice.credits)
            placed = self._placed.get(waiting)
            if placed is None or placed.done():
                self._registry.give_back(choice.node.id, choice.node.generation, choice.credits)
            else:
                placed.set_result(choice)

    def _retry_after_s(self, model: str) -> float:
        slots = sum(entry.state.slots for entry in self._registry.ready(model)) or 1
        return min(MAX_RETRY_AFTER_S, max(1.0, self._mean_request_s * (len(self._queue) + 1) / slots))

    # --- in flight ---

    def _send(
        self,
        request: generation_pb2.GenerationRequest,
        request_id: str,
        wanted: Wanted,
        choice: Choice,
        received_at: float,
        wall_received_at: float,
        deadline: float | None,
    ) -> Answer:
        node, now = choice.node, self._now()
        answer = Answer(request_id, node.id, lambda: self._cancel(flight, "abort", None))
        flight = Flight(
            answer, wanted, choice, node.generation, Continuity(wanted.num_choices), received_at, wall_received_at, now
        )
        self._flights[request_id] = flight
        remaining_ms = 0 if deadline is None else max(1, int((deadline - now) * 1000))
        submit = link_pb2.Submit(request_id=request_id, request=request, deadline_ms=remaining_ms)
        # `auto` was resolved here: the node knows its model by its own name.
        submit.request.model = wanted.model
        if deadline is not None:
            flight.deadline_timer = asyncio.get_running_loop().call_later(
                max(0.0, deadline - now), self._on_deadline, flight
            )
        if not self._links.send(node.id, node.generation, link_pb2.ControllerFrame(submit=submit)):
            self._end(flight, "error", NodeLost(f"the link to node {node.id} ended"))
        return answer

    def on_outputs(self, node_id: str, generation: int, batch: link_pb2.OutputBatch) -> None:
        """What a node has produced. Outputs of requests that it does not have are dropped."""
        news: dict[Flight, list[generation_pb2.Output]] = {}
        for output in batch.outputs:
            flight = self._flights.get(output.request_id)
            if flight is None or flight.generation != generation or output.attempt:
                continue
            try:
                if flight.progress.accepts(output):
                    news.setdefault(flight, []).append(output)
            except Broken as error:
                news.pop(flight, None)
                self._cancel(flight, "error", EngineFailed(f"the answer of node {node_id} broke off: {error}"))
        for flight, outputs in news.items():
            self._on_progress(flight, outputs)

    def _on_progress(self, flight: Flight, outputs: list[generation_pb2.Output]) -> None:
        if flight.first_id_at is None and any(output.token_ids for output in outputs):
            flight.first_id_at = self._now()
        failure: ControllerError | None = None
        for output in outputs:
            if output.HasField("finish"):
                self._add_waiting(flight, output.finish)
                failure = failure or error_of(output.finish, flight.choice.node.id)
        if flight.end_word is not None:
            if flight.progress.is_complete:
                self._end(flight, flight.end_word, flight.error)
            return
        try:
            flight.answer.push([output for output in outputs if not self._is_failure(flight, output)])
        except BufferFull:
            self._cancel(flight, "abort", NoCapacity("the answer was not read fast enough", code="slow_client"))
            return
        if failure is not None and not flight.progress.is_complete:
            self._cancel(flight, _end_word(failure), failure)
        elif failure is not None:
            self._end(flight, _end_word(failure), failure)
        elif flight.progress.is_complete:
            self._end(flight, FINISH_WORDS.get(flight.progress.finishes[0].reason, "error"), None)

    @staticmethod
    def _is_failure(flight: Flight, output: generation_pb2.Output) -> bool:
        """Such an output reaches the caller as an exception instead."""
        return output.HasField("finish") and error_of(output.finish, flight.choice.node.id) is not None

    def _add_waiting(self, flight: Flight, finish: generation_pb2.Finish) -> None:
        """The engine's clock starts with the frame; the client's started here."""
        finish.timings.queue_s += flight.waited_s
        finish.timings.ttft_s += flight.waited_s
        finish.timings.total_s += flight.waited_s

    def _on_deadline(self, flight: Flight) -> None:
        self._cancel(flight, "deadline", DeadlineExceeded("the deadline passed before the answer was complete"))

    def _cancel(self, flight: Flight, end_word: str, error: ControllerError | None) -> None:
        """Tell the caller now, the node once; end when the node confirms."""
        request_id = flight.answer.request_id
        if self._flights.get(request_id) is not flight or flight.end_word is not None:
            return
        flight.end_word, flight.error = end_word, error
        flight.answer.end(error)
        cancel = link_pb2.ControllerFrame(cancel=link_pb2.Cancel(request_id=request_id))
        if not self._links.send(flight.choice.node.id, flight.generation, cancel):
            self._end(flight, end_word, error)
            return
        flight.confirm_timer = asyncio.get_running_loop().call_later(CONFIRM_S, self._end, flight, end_word, error)

    def on_node_lost(self, node_id: str, generation: int) -> None:
        """The stream of this generation is over: what was in flight there fails."""
        for flight in [f for f in self._flights.values() if f.generation == generation]:
            error = flight.error or NodeLost(f"node {node_id} was lost while it had the request")
            self._end(flight, flight.end_word or "error", error)
        self._calls.on_node_lost(node_id, generation)

    def on_answer(self, node_id: str, generation: int, result: link_pb2.CallResult) -> None:
        """The answer of a tokenize or detokenize call."""
        self._calls.on_answer(node_id, generation, result)

    # --- the end ---

    def _end(self, flight: Flight, word: str, error: ControllerError | None) -> None:
        request_id, now = flight.answer.request_id, self._now()
        if self._flights.get(request_id) is not flight:
            return
        del self._flights[request_id]
        self._ids.discard(request_id)
        flight.stop_timers()
        node, record = flight.choice.node, flight_record(flight, word, error, now)
        self._recorder.record(record)
        self._registry.give_back(node.id, flight.generation, flight.choice.credits)
        num_longest = max(flight.progress.next_index)
        self._registry.count_request(node.id, record.decode_s or 0.0, num_longest if error is None else 0)
        self._mean_request_s += 0.1 * (record.total_s - self._mean_request_s)
        flight.answer.end(error)
        self.pump()

    def _record_unplaced(
        self, request_id: str, wanted: Wanted, received_at: float, wall: float, error: BaseException
    ) -> None:
        if isinstance(error, ControllerError) and not isinstance(error, DeadlineExceeded):
            self._recorder.refuse(error.code)
            return
        end_word = "deadline" if isinstance(error, DeadlineExceeded) else "abort"
        total_s = self._now() - received_at
        self._recorder.record(unplaced_record(request_id, wanted, wall, total_s, end_word))

    def close(self) -> None:
        """The controller goes away: every stream gets its error, every waiter too, and nobody comes in."""
        self._is_closing = True
        for flight in list(self._flights.values()):
            self._cancel(flight, "error", _shutting_down())
        for placed in list(self._placed.values()):
            if not placed.done():
                placed.set_exception(_shutting_down())


def _shutting_down() -> Unavailable:
    return Unavailable("the controller is shutting down", code="shutting_down", retry_after_s=RESTART_S)


def _end_word(error: ControllerError) -> str:
    return "deadline" if isinstance(error, DeadlineExceeded) else "error"
