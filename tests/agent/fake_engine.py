"""An engine without a model, as a child process: speaks the real frames and does what its prompts ask for.

A text prompt is an order: `count` yields one token every PACE seconds until max_tokens, `wait` yields nothing, `crash` ends
the process at once, `flood N` yields outputs of N bytes as fast as they can be written. Modes (first argument): `serve`,
`load_failed`, `load_retryable`, `die`, `garbage`, `oversize`, `hang`.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time

from shoal.runtime import wire

PACE_S = 0.02
MAX_RUNNING = 4


def say(message: wire.FromEngine) -> None:
    sys.stdout.buffer.write(wire.encode_frame(message))
    sys.stdout.buffer.flush()


def read_frames(inbox: queue.Queue[wire.ToEngine | None]) -> None:
    stdin = sys.stdin.buffer
    while prefix := stdin.read(4):
        inbox.put(wire.to_engine_decoder.decode(stdin.read(wire.frame_length(prefix))))
    os._exit(0)  # the agent is gone


def stats(running: int, generated: int) -> wire.Stats:
    step = [0] * (len(wire.HISTOGRAM_STEP_S) + 1)
    step[2] = generated
    token = [0] * (len(wire.HISTOGRAM_TOKEN_S) + 1)
    token[-1] = generated
    return wire.Stats(
        running=running,
        waiting=0,
        kv_blocks_used=running * 2,
        kv_blocks_cached=1,
        kv_blocks_free=100 - running * 2,
        state_slots_used=running,
        state_slots_cached=0,
        state_slots_free=MAX_RUNNING - running,
        prompt_tokens=3,
        generation_tokens=generated,
        preemptions=0,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        step_s=wire.Histogram(step, 0.002 * generated),
        host_s=wire.Histogram(step, 0.001 * generated),
        inter_token_s=wire.Histogram(token, 20.0 * generated),
    )


def ready(configure: wire.Configure) -> wire.Ready:
    return wire.Ready(
        model=configure.served_name,
        size="1m",
        format="bf16",
        backend="reference",
        isa="FAKE2",
        max_model_len=1024,
        vocab_size=256,
        max_running=MAX_RUNNING,
        capabilities=["chat"],
        source_digest="s" * 64,
        serving_digest="v" * 64,
        determinism_class="fake",
        num_parameters=1_000_000,
        planned_bytes={"weights": 1000, "kv": 500},
        allocated_bytes={"weights": 1000, "kv": 500},
    )


def finish(reason: wire.FinishReason, generated: int) -> wire.Finish:
    return wire.Finish(reason=reason, usage=wire.Usage(3, generated), timings=wire.Timings(total_s=1.0))


def serve(configure: wire.Configure, inbox: queue.Queue[wire.ToEngine | None]) -> None:
    say(ready(configure))
    running: dict[tuple[str, int], tuple[wire.Request, int]] = {}
    generated = 0
    told = (-1, -1)
    while True:
        try:
            message = inbox.get(timeout=PACE_S if running else 0.2)
        except queue.Empty:
            message = None
        match message:
            case wire.Request():
                order = message.prompt.text if isinstance(message.prompt, wire.TextPrompt) else "count"
                if order == "crash":
                    os._exit(7)
                if order.startswith("flood"):
                    flood(message, int(order.split()[1]))
                running[(message.request_id, message.attempt)] = (message, 0)
            case wire.Abort():
                found = running.pop((message.request_id, message.attempt), None)
                if found is not None:
                    end = finish(wire.FinishReason.ABORT, found[1])
                    say(outputs(message.request_id, message.attempt, finish=end))
            case wire.TokenizeCall():
                text = message.prompt.text if isinstance(message.prompt, wire.TextPrompt) else ""
                say(wire.CallResult(call_id=message.call_id, token_ids=list(text.encode())))
            case wire.DetokenizeCall():
                say(wire.CallResult(call_id=message.call_id, text=bytes(message.token_ids).decode()))
        for key, (request, index) in list(running.items()):
            if isinstance(request.prompt, wire.TextPrompt) and request.prompt.text == "wait":
                continue
            is_last = index + 1 >= (request.max_tokens or 1)
            end = finish(wire.FinishReason.LENGTH, index + 1) if is_last else None
            prompt = wire.PromptOutput(token_ids=[1, 2, 3]) if index == 0 else None
            delta = wire.Delta(wire.DeltaKind.TEXT, f"t{index} ")
            say(outputs(*key, first_index=index, token_ids=[index], deltas=[delta], prompt=prompt, finish=end))
            generated += 1
            if is_last:
                del running[key]
            else:
                running[key] = (request, index + 1)
        if told != (len(running), generated):
            told = (len(running), generated)
            say(stats(len(running), generated))


def outputs(request_id: str, attempt: int, **fields: object) -> wire.OutputBatch:
    return wire.OutputBatch([wire.Output(request_id=request_id, attempt=attempt, **fields)])  # type: ignore[arg-type]


def flood(request: wire.Request, num_bytes: int) -> None:
    delta = wire.Delta(wire.DeltaKind.TEXT, "x" * num_bytes)
    for index in range(200):
        say(outputs(request.request_id, request.attempt, first_index=index, token_ids=[index], deltas=[delta]))


def main(mode: str) -> None:
    inbox: queue.Queue[wire.ToEngine | None] = queue.Queue()
    if mode == "die":
        sys.exit(9)
    threading.Thread(target=read_frames, args=(inbox,), daemon=True).start()
    configure = inbox.get()
    assert isinstance(configure, wire.Configure)
    print("loading", configure.served_name, file=sys.stderr, flush=True)
    match mode:
        case "load_failed" | "load_retryable":
            retryable = mode == "load_retryable"
            say(wire.LoadFailed(wire.ErrorInfo(code="unsupported", message="no such model", retryable=retryable)))
            sys.exit(1)
        case "garbage":
            sys.stdout.buffer.write(b"\x08\0\0\0\xc1\xc1\xc1\xc1\xc1\xc1\xc1\xc1")
            sys.stdout.buffer.flush()
            time.sleep(60)
        case "oversize":
            sys.stdout.buffer.write(b"\xff\xff\xff\xff")
            sys.stdout.buffer.flush()
            time.sleep(60)
        case "hang":
            time.sleep(60)
        case _:
            serve(configure, inbox)


main(sys.argv[1] if len(sys.argv) > 1 else "serve")
