"""The engine as a process: `wire` frames in on stdin, frames out on stdout, stderr as its log.

    thread     does                                          waits for
    reader     reads frames, hands them on, sees the end     stdin
    intake     renders and tokenises prompts, answers calls  what the reader hands on
    main       loads, then steps while there is work         what the intake hands on
    outbox     writes what the pipe had no room for          stdout

The end of stdin ends the process, also in the middle of a step: the reader gives the others END_GRACE_S and then leaves
without them. Exit status: 0 after the end of stdin, 1 when loading or a step failed, 2 when the peer broke the protocol.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import crash_report, wire
from .config import EngineOptions
from .engine import Engine, refusal
from .errors import RuntimeFault
from .frame_pipe import Outbox, claim_standard_streams, read_frame
from .intake import PreparedRequest
from .intake_thread import IntakeThread
from .mailbox import Mailbox
from .open_requests import OpenRequests
from .refusals import error_info
from .thread_waiting import wait_passively

END_GRACE_S = 0.5
"""After the end of stdin: what a step may still take before the process leaves it."""

LAST_WORDS_S = 0.5
"""After a failure: what the last frames may take to be read."""

STATS_BUSY_S = 0.25
STATS_IDLE_S = 1.0

SWITCH_INTERVAL_S = 0.0005
"""How long a busy thread keeps the interpreter's lock. A step gives it up at each of its hundreds of operations, and at the
interpreter's own 5 ms a prompt being rendered would make a step take seconds."""

EXIT_ENDED = 0
EXIT_FAILED = 1
EXIT_PROTOCOL = 2

Load = Callable[[wire.Configure], tuple[Engine, wire.Ready]]
Work = PreparedRequest | wire.Abort


def load_configured(configure: wire.Configure) -> tuple[Engine, wire.Ready]:
    """Raises RuntimeFault: a wrong option or a model that cannot be served."""
    # Here and not above: the end of stdin must be seen from the first moment, and the reference back end imports torch for seconds.
    wait_passively()
    from .loading import load_engine
    from .ready_frame import ready_frame

    home = Path(configure.home) if configure.home else None
    loaded = load_engine(configure.model_dir, EngineOptions.from_mapping(configure.options), home=home, announce=_log)
    return loaded.engine, ready_frame(loaded, configure.served_name)


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@dataclass(slots=True)
class _End:
    """Whether and how the process is to end; set once, by whoever sees the reason first."""

    requested: threading.Event
    finished: threading.Event
    status: int = EXIT_ENDED


class Service:
    """One conversation over two file descriptors. `run` returns the exit status."""

    def __init__(
        self,
        input_fd: int,
        output_fd: int,
        load: Load = load_configured,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._input_fd = input_fd
        self._load = load
        self._leave = leave
        self._outbox = Outbox(output_fd)
        self._open = OpenRequests()
        self._work: Mailbox[Work] = Mailbox()
        self._configured: Mailbox[wire.Configure] = Mailbox()
        self._intake = IntakeThread(self._open, self._outbox, self._work)
        self._end = _End(threading.Event(), threading.Event())

    def run(self) -> int:
        """Until stdin ends, or the engine cannot go on."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            configure = self._configured.take_all(None)
            if not configure:
                return self._end.status
            loaded = self._load_or_tell(configure[0])
            if loaded is None:
                return self._end.status if self._end.requested.is_set() else EXIT_FAILED
            engine, ready = loaded
            self._intake.start(engine.intake, engine.clock)
            self._send(ready)
            return self._steps(engine)
        finally:
            self._outbox.flush(LAST_WORDS_S)
            self._end.finished.set()

    def _load_or_tell(self, configure: wire.Configure) -> tuple[Engine, wire.Ready] | None:
        try:
            return self._load(configure)
        except RuntimeFault as fault:
            self._send(wire.LoadFailed(error=error_info(fault)))
            return None
        except MemoryError:
            info = wire.ErrorInfo(code="out_of_memory", message="the machine has no memory left for this model")
            self._send(wire.LoadFailed(error=info))
            return None
        except Exception as error:
            # A bug, or a failing disk. The message may speak of file contents, never of a prompt: there was none yet.
            crash_report.write("loading failed", error)
            info = wire.ErrorInfo(code="model_load_failed", message=f"loading failed: {type(error).__name__}: {error}")
            self._send(wire.LoadFailed(error=info))
            return None

    def _steps(self, engine: Engine) -> int:
        """The main loop; sleeps while there is nothing to do."""
        sent, sent_at = engine.stats, engine.clock()
        self._send(sent)
        while not self._end.requested.is_set():
            # News that came too soon after the last frame waits no longer than it must: an abort is seen within a second.
            pause_s = STATS_IDLE_S if engine.has_work or engine.stats == sent else STATS_BUSY_S
            wait_s = 0.0 if engine.has_work else max(sent_at + pause_s - engine.clock(), 0.0)
            outputs = self._take_work(engine, self._work.take_all(wait_s))
            if engine.has_work:
                try:
                    outputs += engine.step()
                except Exception as error:
                    self._tell_failure(engine, outputs, error)
                    return EXIT_FAILED
            if outputs:
                self._send(wire.OutputBatch(outputs=outputs))
                self._close_ended(engine, outputs)
            now = engine.clock()
            if now - sent_at >= STATS_BUSY_S:
                stats = engine.stats
                if stats != sent or now - sent_at >= STATS_IDLE_S:
                    self._send(stats)
                    sent, sent_at = stats, now
        return self._end.status

    def _take_work(self, engine: Engine, items: list[Work]) -> list[wire.Output]:
        outputs: list[wire.Output] = []
        for item in items:
            if isinstance(item, wire.Abort):
                outputs += engine.abort((item.request_id, item.attempt))
                continue
            try:
                engine.add(item)
            except RuntimeFault as fault:
                outputs.append(refusal(item.request_id, item.attempt, fault))
                continue
            # The abort may have overtaken its request, and found nothing to end.
            if self._open.is_aborted(item.key):
                outputs += engine.abort(item.key)
        return outputs

    def _close_ended(self, engine: Engine, outputs: list[wire.Output]) -> None:
        for output in outputs:
            key = (output.request_id, output.attempt)
            if output.finish is not None and not engine.is_open(key):
                self._open.close(key)

    def _tell_failure(self, engine: Engine, outputs: list[wire.Output], error: Exception) -> None:
        crash_report.write("a step failed", error)
        info = wire.ErrorInfo(code="engine_failed", message="the engine could not do a step", retryable=True)
        self._send(wire.OutputBatch(outputs=[*outputs, *engine.fail_all(info)]))

    def _send(self, message: wire.FromEngine) -> None:
        self._outbox.put(wire.encode_frame(message))

    # --- the reader's thread ---

    def _read(self) -> None:
        status = EXIT_ENDED
        try:
            self._read_frames()
        except (wire.FrameError, msgspec.DecodeError) as error:
            # A decoding error may quote the frame, so only its type is said.
            sys.stderr.write(f"the peer broke the protocol: {type(error).__name__}\n")
            sys.stderr.flush()
            status = EXIT_PROTOCOL
        except Exception as error:
            crash_report.write("the reader failed", error)
            status = EXIT_FAILED
        self._end.status = status
        self._end.requested.set()
        self._outbox.close()
        self._configured.wake()
        self._work.wake()
        if not self._end.finished.wait(END_GRACE_S):
            self._leave(status)

    def _read_frames(self) -> None:
        is_configured = False
        while (body := read_frame(self._input_fd)) is not None:
            message = wire.to_engine_decoder.decode(body)
            if isinstance(message, wire.Configure) is is_configured:
                raise wire.FrameError("the first frame configures, and no other")
            match message:
                case wire.Configure():
                    is_configured = True
                    self._configured.put(message)
                case wire.Abort():
                    if self._open.abort((message.request_id, message.attempt)):
                        self._work.put(message)
                case _:
                    self._intake.submit(message, len(body))


def main() -> None:
    """Entry point of `python -m shoal.runtime`."""
    crash_report.install()
    faulthandler.enable()  # a crash below the interpreter leaves its frames, which hold no text
    # Ctrl-C in a terminal reaches every process; the end of stdin is what ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    status = Service(*claim_standard_streams()).run()
    sys.stderr.flush()
    # Without the interpreter's farewell: a thread may still be in the middle of something.
    os._exit(status)
