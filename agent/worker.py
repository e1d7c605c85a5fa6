"""Requests of all links on one engine: who asked, what has ended, and who must hear when the engine dies.

The engine speaks of request ids; this module knows which link each belongs to. One table, in memory, bounded by the
sessions' own bounds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

from shoal.runtime import wire

from .engine_process import EnginePhase, EngineProcess

Key = tuple[str, int]

MAX_CALLS = 256
"""Tokenize and detokenize calls that wait for the engine; more are refused."""


class Requester(Protocol):
    """A link, as the worker sees it. Called from the event loop; must not block."""

    def on_outputs(self, outputs: list[wire.Output]) -> None: ...

    def on_end(self, key: Key) -> None: ...

    def on_answer(self, result: wire.CallResult) -> None: ...


@dataclass(slots=True)
class _Running:
    requester: Requester
    open_choices: set[int]
    prompt_tokens: int = 0
    num_generated: dict[int, int] = field(default_factory=lambda: defaultdict(int))


class Worker:
    """Between the links and the engine process."""

    def __init__(self) -> None:
        self._engine: EngineProcess | None = None
        self._running: dict[Key, _Running] = {}
        self._calls: dict[str, tuple[Requester, str]] = {}
        self._num_calls = 0

    def attach(self, engine: EngineProcess) -> None:
        """The engine that serves; it and its listener know each other only after both exist."""
        self._engine = engine

    @property
    def num_running(self) -> int:
        """Requests that the engine has and has not ended."""
        return len(self._running)

    def submit(self, request: wire.Request, requester: Requester) -> None:
        """Start it, or answer at once that it cannot be started."""
        key = (request.request_id, request.attempt)
        if key in self._running:
            # Two controllers drew the same id; the first keeps it, for the engine knows requests by it.
            _refuse(requester, key, "duplicate_request", "a request of this id and attempt runs here", retryable=False)
            return
        self._running[key] = _Running(requester, set(range(request.n)))
        problem = self._send(request)
        if problem is not None:
            del self._running[key]
            _refuse(requester, key, problem.code, problem.message, retryable=problem.retryable)

    def abort(self, key: Key, requester: Requester) -> None:
        """Free its sequences. The engine's last output for it still arrives, if it had one to give."""
        running = self._running.get(key)
        if running is not None and running.requester is requester and self._engine is not None:
            self._engine.send(wire.Abort(request_id=key[0], attempt=key[1]))

    def forget(self, key: Key, requester: Requester) -> None:
        """The requester is gone: free the sequences and drop what they still produce."""
        running = self._running.get(key)
        if running is not None and running.requester is requester:
            self.abort(key, requester)
            del self._running[key]

    def ask(self, call: wire.TokenizeCall | wire.DetokenizeCall, requester: Requester) -> None:
        """A short question; the answer, or the refusal, goes to `on_answer`."""
        call_id = call.call_id
        self._num_calls += 1
        # The engine sees an id of ours: two controllers may have chosen the same one.
        call.call_id = f"call-{self._num_calls}"
        problem: wire.ErrorInfo | None
        if len(self._calls) >= MAX_CALLS:
            problem = wire.ErrorInfo(code="queue_full", message="too many calls wait for the engine", retryable=True)
        else:
            problem = self._send(call)
        if problem is None:
            self._calls[call.call_id] = (requester, call_id)
        else:
            requester.on_answer(wire.CallResult(call_id=call_id, error=problem))

    def _send(self, message: wire.ToEngine) -> wire.ErrorInfo | None:
        try:
            if self._engine is not None and self._engine.send(message):
                return None
        except wire.FrameError as error:
            return wire.ErrorInfo(code="request_too_large", message=str(error))
        serving = self._engine is not None and self._engine.phase is EnginePhase.SERVING
        if serving:
            return wire.ErrorInfo(code="queue_full", message="the engine reads too slowly", retryable=True)
        return wire.ErrorInfo(code="engine_failed", message="no engine serves here at this moment", retryable=True)

    # --- the engine's news ---

    def on_batch(self, batch: wire.OutputBatch) -> None:
        """Give each output to its link, then tell the links which requests are over."""
        by_requester: dict[Requester, list[wire.Output]] = {}
        ended: list[tuple[Key, Requester]] = []
        for output in batch.outputs:
            key = (output.request_id, output.attempt)
            running = self._running.get(key)
            if running is None:
                continue  # forgotten meanwhile
            by_requester.setdefault(running.requester, []).append(output)
            running.num_generated[output.choice] += len(output.token_ids)
            if output.prompt is not None:
                running.prompt_tokens = len(output.prompt.token_ids)
            if output.finish is not None:
                running.open_choices.discard(output.choice)
                if running.open_choices and output.finish.reason is wire.FinishReason.ERROR:
                    # A refused request has one output, for choice 0, whatever `n` was. Where a choice failed alone, the
                    # others are of no use without it.
                    self.abort(key, running.requester)
                    running.open_choices.clear()
                if not running.open_choices:
                    del self._running[key]
                    ended.append((key, running.requester))
        for requester, outputs in by_requester.items():
            requester.on_outputs(outputs)
        for key, requester in ended:
            requester.on_end(key)

    def on_call_result(self, result: wire.CallResult) -> None:
        """Give the answer back under the id that the controller chose."""
        asked = self._calls.pop(result.call_id, None)
        if asked is not None:
            requester, result.call_id = asked
            requester.on_answer(result)

    def on_lost(self) -> None:
        """The engine died: every request that it had fails now, retryable, with the tokens that it had produced."""
        error = wire.ErrorInfo(code="engine_failed", message="the engine died while it had the request", retryable=True)
        running, self._running = self._running, {}
        calls, self._calls = self._calls, {}
        by_requester: dict[Requester, list[wire.Output]] = {}
        for (request_id, attempt), entry in running.items():
            for choice in sorted(entry.open_choices):
                num_generated = entry.num_generated[choice]
                finish = wire.Finish(
                    reason=wire.FinishReason.ERROR,
                    usage=wire.Usage(entry.prompt_tokens, num_generated),
                    timings=wire.Timings(),
                    error=error,
                )
                output = wire.Output(
                    request_id=request_id, attempt=attempt, choice=choice, first_index=num_generated, finish=finish
                )
                by_requester.setdefault(entry.requester, []).append(output)
        for requester, outputs in by_requester.items():
            requester.on_outputs(outputs)
        for key, entry in running.items():
            entry.requester.on_end(key)
        for requester, call_id in calls.values():
            requester.on_answer(wire.CallResult(call_id=call_id, error=error))


def _refuse(requester: Requester, key: Key, code: str, message: str, *, retryable: bool) -> None:
    finish = wire.Finish(
        reason=wire.FinishReason.ERROR,
        usage=wire.Usage(0, 0),
        timings=wire.Timings(),
        error=wire.ErrorInfo(code=code, message=message, retryable=retryable),
    )
    requester.on_outputs([wire.Output(request_id=key[0], attempt=key[1], finish=finish)])
    requester.on_end(key)
