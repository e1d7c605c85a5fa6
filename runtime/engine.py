"""The engine: continuous batching in three verbs a step. Synchronous and single-threaded; whoever owns it drives it.

    plan = scheduler.schedule()           which tokens of which sequences
    result = runner.execute(plan)         the model
    scheduler.commit(plan, drawn)         what became of them

Requests come in by `add`, leave by `abort` or by the output that carries their `finish`. Everything that it says is a list
of `wire.Output`; text is never part of an exception or a log line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from . import crash_report
from .answer import Answer
from .errors import RuntimeFault
from .intake import Intake, PreparedRequest
from .refusals import AnswerFailed, DuplicateRequest, QueueFull, error_info
from .scheduler import Scheduler, StepPlan
from .stats import EngineCounters, stats_frame
from .step_result import CandidatesWanted, StepResult
from .wire import ErrorInfo, Finish, FinishReason, Output, Request, Stats, Timings, Usage

MAX_WAITING = 256
"""Choices that wait for a slot. The fleet's credits keep the queue short; this is for those who come without."""

MAX_PREFILL_BESIDE_DECODE = 128
"""Prompt tokens of a step in which others decode. On a CPU a prompt token costs nearly as much as a decoded one, so a full
step's worth would stop every stream for as long as hundreds of tokens take."""

Key = tuple[str, int]


class Runner(Protocol):
    """What computes a step (`model_runner.ModelRunner`, `native_runner.NativeRunner`)."""

    def execute(self, plan: StepPlan, wanted: Sequence[CandidatesWanted | None]) -> StepResult:
        """`wanted`, a row of the plan each, says of which rows candidates are enough; whole rows always are."""


class Engine:
    """Built from its parts; `loading.load_engine` builds it from a directory."""

    def __init__(
        self, intake: Intake, scheduler: Scheduler, runner: Runner, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.intake = intake
        self.clock = clock
        self._scheduler = scheduler
        self._runner = runner
        self._counters = EngineCounters()
        self._answers: dict[int, Answer] = {}
        self._seq_ids: dict[Key, set[int]] = {}
        self._num_sequences = 0
        self._next_deadline_at = math.inf
        """Nobody's deadline comes before this: most steps need not look for one."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.has_work

    @property
    def stats(self) -> Stats:
        """The books at this moment."""
        return stats_frame(self._counters, self._scheduler)

    def is_open(self, key: Key) -> bool:
        """Whether a choice of this request has not ended."""
        return key in self._seq_ids

    def add(self, request: Request | PreparedRequest) -> None:
        """Queue all choices of a request, or none. Raises RequestInvalid or QueueFull."""
        if isinstance(request, Request):
            request = self.intake.prepare(request, self.clock())
        if request.key in self._seq_ids:
            raise DuplicateRequest("a request of this id and attempt runs already")
        if not self._scheduler.has_room(request.num_choices):
            raise QueueFull(f"{self._scheduler.num_waiting} choices wait already, of {MAX_WAITING} at most")
        answers = [
            Answer(
                request,
                choice,
                self._num_sequences + choice,
                vocab_size=self.intake.tokenizer.vocab_size,
                token_bytes=self.intake.tokenizer.token_bytes,
            )
            for choice in range(request.num_choices)
        ]
        self._num_sequences += len(answers)
        if request.deadline_at is not None:
            self._next_deadline_at = min(self._next_deadline_at, request.deadline_at)
        self._seq_ids[request.key] = {answer.sequence.seq_id for answer in answers}
        for answer in answers:
            self._answers[answer.sequence.seq_id] = answer
            self._scheduler.add(answer.sequence)

    def abort(self, key: Key) -> list[Output]:
        """Free its blocks and slots now. One last output for each choice that was open; none for an unknown id."""
        return self._end_request(key, FinishReason.ABORT)

    def fail_all(self, error: ErrorInfo) -> list[Output]:
        """End everything with an error, when the engine itself cannot go on."""
        return [output for key in list(self._seq_ids) for output in self._end_request(key, FinishReason.ERROR, error)]

    def step(self, max_tokens: int | None = None) -> list[Output]:
        """One iteration; `max_tokens` makes it smaller than it might be. What the model raises comes out; the engine is not to be used
        after that.
        """
        began_at = self.clock()
        outputs = self._end_overdue(began_at) if began_at >= self._next_deadline_at else []
        plan = self._scheduler.schedule(max_tokens)
        if not plan.rows:
            return outputs
        answers: list[Answer] = []
        wanted: list[CandidatesWanted | None] = []
        for row in plan.rows:
            answer = self._answers[row.sequence.seq_id]
            answers.append(answer)
            if answer.started_at is None:
                answer.started_at = began_at
            wanted.append(answer.wanted() if row.draws else None)
        result = self._runner.execute(plan, wanted)
        drawn, faults = self._draw(plan, answers, result)
        self._scheduler.commit(plan, drawn)
        outputs += self._report(plan, answers, drawn, faults)
        if not self._scheduler.has_work:
            self.check_books()  # the idle moment: a leak shows here, not as a slow starvation
        step_s = self.clock() - began_at
        self._counters.step_s.observe(step_s)
        self._counters.host_s.observe(max(step_s - result.forward_s, 0.0))
        return outputs

    def check_books(self) -> None:
        """Nothing is held for nobody, nothing for two. Raises block_manager.BooksError."""
        self._scheduler.blocks.check_books()

    def _draw(
        self, plan: StepPlan, answers: list[Answer], result: StepResult
    ) -> tuple[dict[int, int], dict[Key, RuntimeFault]]:
        drawn: dict[int, int] = {}
        faults: dict[Key, RuntimeFault] = {}
        for row, answer, logits in zip(plan.rows, answers, result.rows, strict=True):
            try:
                if answer.scores_prompt:
                    answer.score_prompt(row, logits)
                if logits.last is not None:
                    drawn[row.sequence.seq_id] = answer.draw(logits.last)
            except Exception as error:
                faults[answer.request.key] = _fault_of(error)
        return drawn, faults

    def _report(
        self, plan: StepPlan, answers: list[Answer], drawn: dict[int, int], faults: dict[Key, RuntimeFault]
    ) -> list[Output]:
        now, counters = self.clock(), self._counters
        outputs: list[Output] = []
        for row, answer in zip(plan.rows, answers, strict=True):
            if faults and answer.request.key in faults:
                continue
            last_token_at = answer.last_token_at
            num_prefilled_tokens = answer.num_prefilled_tokens
            output: Output | None = None
            try:
                output = answer.report(row, drawn.get(row.sequence.seq_id), now)
            except Exception as error:
                faults[answer.request.key] = _fault_of(error)
            counters.prompt_tokens += answer.num_prefilled_tokens - num_prefilled_tokens
            if output is None:
                continue
            outputs.append(output)
            if output.token_ids:
                counters.generation_tokens += len(output.token_ids)
                if last_token_at is not None:
                    counters.inter_token_s.observe(now - last_token_at)
            if output.finish is not None:
                self._forget(answer)
        for key, fault in faults.items():
            outputs += self._end_request(key, FinishReason.ERROR, error_info(fault))
        return outputs

    def _end_overdue(self, now: float) -> list[Output]:
        overdue = {
            answer.request.key: None
            for answer in self._answers.values()
            if answer.request.deadline_at is not None and answer.request.deadline_at <= now
        }
        outputs = [output for key in overdue for output in self._end_request(key, FinishReason.DEADLINE)]
        deadlines = (answer.request.deadline_at for answer in self._answers.values())
        self._next_deadline_at = min((at for at in deadlines if at is not None), default=math.inf)
        return outputs

    def _end_request(self, key: Key, reason: FinishReason, error: ErrorInfo | None = None) -> list[Output]:
        now = self.clock()
        outputs: list[Output] = []
        for seq_id in sorted(self._seq_ids.get(key, ())):
            answer = self._answers[seq_id]
            outputs.append(answer.end(reason, now, error))
            self._forget(answer)
        return outputs

    def _forget(self, answer: Answer) -> None:
        seq_id, key = answer.sequence.seq_id, answer.request.key
        self._scheduler.finish(answer.sequence)
        del self._answers[seq_id]
        self._seq_ids[key].discard(seq_id)
        if not self._seq_ids[key]:
            del self._seq_ids[key]


def _fault_of(error: Exception) -> RuntimeFault:
    """What goes wrong with one answer's ids or text ends that request, and no other."""
    if isinstance(error, RuntimeFault):
        return error
    crash_report.write("an answer failed", error)
    return AnswerFailed("the answer could not be read")


def refusal(request_id: str, attempt: int, fault: RuntimeFault) -> Output:
    """The only output of a request that was not taken."""
    finish = Finish(reason=FinishReason.ERROR, usage=Usage(0, 0), timings=Timings(), error=error_info(fault))
    return Output(request_id=request_id, attempt=attempt, finish=finish)
