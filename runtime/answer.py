"""One choice of a request while the engine has it: draws its ids, reads what they mean, knows when it is over.

The scheduler sees only its `Sequence`; this is everything else. A pre-emption does not show here: what was drawn stays
drawn, and the counter of the generator is the number of generated ids.
"""

from __future__ import annotations

import numpy as np

from .intake import PreparedRequest
from .logit_processors import Row, logit_chain
from .logprobs import TokenBytes, first_logprob, log_softmax, token_logprob
from .philox import uniform
from .refusals import OutputNotFinite
from .sampler import NotFinite, num_candidates, sample, sample_candidates
from .scheduler import ScheduledRow
from .sequence import Sequence
from .step_result import Candidates, CandidatesWanted, RowLogits
from .wire import (
    ErrorInfo,
    Finish,
    FinishReason,
    Output,
    PromptOutput,
    Timings,
    TokenLogprob,
    Usage,
)

_NOT_FINITE = "the model's output for this request is not finite"


class Answer:
    """Its `sequence` lives in the scheduler; `choice` 0 also reports the prompt."""

    def __init__(
        self, request: PreparedRequest, choice: int, seq_id: int, *, vocab_size: int, token_bytes: TokenBytes
    ) -> None:
        self.request = request
        self.choice = choice
        self.sequence = Sequence(
            seq_id,
            request.prompt_ids,
            max_new_tokens=request.max_new_tokens,
            scores_prompt=choice == 0 and request.prompt_logprobs is not None,
        )
        self._token_bytes = token_bytes
        self._parser = request.parsers[choice]
        self._chain = logit_chain(
            request.params,
            vocab_size=vocab_size,
            prompt_ids=request.prompt_ids,
            stop_ids=request.stop_ids,
            min_tokens=request.min_tokens,
        )
        wants_row = request.logprobs is not None or not self._chain.is_additive
        count = None if wants_row else num_candidates(request.params)
        self._wish = None if count is None else CandidatesWanted(count)
        self._is_greedy = request.params.is_greedy
        self.scores_prompt = choice == 0 and request.prompt_logprobs is not None
        """Rows of its prompt go to `score_prompt`."""
        self._generated: list[int] = []
        self._num_reported_tokens = 0
        self._drawn_logprob: TokenLogprob | None = None
        self._prompt_logprobs: list[TokenLogprob] = []
        self.num_prefilled_tokens = 0
        """Prompt tokens computed so far; a pre-emption takes none of them back."""
        self.started_at: float | None = None
        """When it was first in a step: waiting was over, and a pre-emption does not count."""
        self._first_token_at: float | None = None
        self.last_token_at: float | None = None

    def score_prompt(self, row: ScheduledRow, logits: RowLogits) -> None:
        """Keep the logprobs of the prompt tokens that this row scores. Raises OutputNotFinite."""
        num_top = self.request.prompt_logprobs or 0
        if not self._prompt_logprobs:  # nothing scores the first token, which may be the only one
            self._prompt_logprobs.append(first_logprob(self.sequence.token_ids[0], self._token_bytes))
        if not len(logits.scored):
            return
        if not np.isfinite(logits.scored.max(axis=-1)).all():
            raise OutputNotFinite(_NOT_FINITE)
        for position, scores in zip(row.scored_range, log_softmax(logits.scored), strict=True):
            token_id = self.sequence.token_ids[position + 1]
            self._prompt_logprobs.append(token_logprob(scores, token_id, num_top, self._token_bytes))

    def wanted(self) -> CandidatesWanted | None:
        """What the next draw needs of its row; None for all of it."""
        wish, adjustments = self._wish, self._chain.adjustments
        if wish is None or adjustments.is_empty:
            return wish
        return CandidatesWanted(wish.count, *adjustments.read(self._generated))

    def draw(self, logits: Row | Candidates) -> int:
        """The next id. Changes a whole row. Raises OutputNotFinite."""
        params = self.request.params
        chance = 0.0 if self._is_greedy else uniform(params.seed, self.choice, len(self._generated))
        try:
            if isinstance(logits, Candidates):
                return sample_candidates(logits, params, chance)
            num_top = self.request.logprobs
            scores = None if num_top is None else log_softmax(logits)
            for processor in self._chain.processors:
                processor.apply(logits, self._generated)
            token_id = sample(logits, params, chance)
        except NotFinite:
            raise OutputNotFinite(_NOT_FINITE) from None
        if scores is not None and num_top is not None:
            self._drawn_logprob = token_logprob(scores, token_id, num_top, self._token_bytes)
        return token_id

    def report(self, row: ScheduledRow, drawn: int | None, now: float) -> Output | None:
        """What a computed row brought to the client; None when it is nothing (a recomputed prefill)."""
        output = self._output()
        if self.num_prefilled_tokens < self.sequence.num_prompt_tokens:
            self._report_prefill(output, row)
        elif drawn is None:
            return None
        if drawn is not None:
            self._take(output, drawn, now)
        elif self.sequence.is_exhausted:  # max_tokens was 0
            output.finish = self._finish(FinishReason.LENGTH, now)
        self._num_reported_tokens = len(self._generated)  # not where something above failed
        return output

    def _report_prefill(self, output: Output, row: ScheduledRow) -> None:
        num_prompt_tokens = self.sequence.num_prompt_tokens
        self.num_prefilled_tokens = max(self.num_prefilled_tokens, min(row.end, num_prompt_tokens))
        output.num_prefilled = self.num_prefilled_tokens
        if self.num_prefilled_tokens == num_prompt_tokens and self.choice == 0:
            output.prompt = PromptOutput(
                token_ids=list(self.request.prompt_ids),
                text=self.request.prompt_text,
                logprobs=self._prompt_logprobs,
            )

    def end(self, reason: FinishReason, now: float, error: ErrorInfo | None = None) -> Output:
        """The last output of an answer that something other than its ids ends."""
        output = self._output()
        output.deltas = [] if error is not None else list(self._parser.finish())
        output.finish = self._finish(reason, now)
        output.finish.error = error
        return output

    def _output(self) -> Output:
        return Output(
            request_id=self.request.request_id,
            attempt=self.request.attempt,
            choice=self.choice,
            first_index=self._num_reported_tokens,
        )

    def _take(self, output: Output, token_id: int, now: float) -> None:
        if self._first_token_at is None:
            self._first_token_at = now
        self.last_token_at = now
        self._generated.append(token_id)
        output.token_ids = [token_id]
        if self._drawn_logprob is not None:
            output.logprobs = [self._drawn_logprob]
            self._drawn_logprob = None
        parser = self._parser
        output.deltas = parser.push((token_id,))
        if token_id in self.request.stop_ids or parser.stop_hit is not None:
            self._end_by(FinishReason.STOP, output, token_id, now)
        elif self.sequence.is_exhausted:
            self._end_by(FinishReason.LENGTH, output, token_id, now)

    def _end_by(self, reason: FinishReason, output: Output, token_id: int, now: float) -> None:
        deltas = output.deltas
        deltas += self._parser.finish()
        if self._parser.stop_hit is not None:  # the end may have shown it, in text that was held back
            reason = FinishReason.STOP
        if reason is FinishReason.STOP and self.request.is_chat and self._parser.saw_tool_call:
            reason = FinishReason.TOOL_CALLS
        output.finish = self._finish(reason, now)
        if token_id in self.request.stop_ids:
            output.finish.stop_token_id = token_id
        else:
            output.finish.stop_text = self._parser.stop_hit or ""

    def _finish(self, reason: FinishReason, now: float) -> Finish:
        return Finish(
            reason=reason,
            usage=Usage(prompt_tokens=self.sequence.num_prompt_tokens, completion_tokens=len(self._generated)),
            timings=self._timings(now),
        )

    def _timings(self, now: float) -> Timings:
        arrived_at = self.request.arrived_at
        started_at = now if self.started_at is None else self.started_at
        prefilled_at = now if self._first_token_at is None else self._first_token_at
        decoded_at = prefilled_at if self.last_token_at is None else self.last_token_at
        return Timings(
            queue_s=started_at - arrived_at,
            prefill_s=prefilled_at - started_at,
            ttft_s=prefilled_at - arrived_at,
            decode_s=decoded_at - prefilled_at,
            total_s=now - arrived_at,
        )
