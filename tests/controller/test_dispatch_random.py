"""Dispatch under random orders of everything that can happen, without a network: each request ends once, nothing leaks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from shoal_fake_fleet import Records, ids_request, output, ready_state

from shoal.controller.backend import GenerateOptions
from shoal.controller.dispatch import Dispatcher, Limits
from shoal.controller.errors import ControllerError
from shoal.controller.registry import LinkStatus, Registry
from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2

STOP, ABORT, ERROR = (
    generation_pb2.FINISH_REASON_STOP,
    generation_pb2.FINISH_REASON_ABORT,
    generation_pb2.FINISH_REASON_ERROR,
)
NODES = ("n1", "n2", "n3")
NUM_STEPS = 150


class Agents:
    """All nodes: what was submitted there and not ended, and how far each choice is."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.open: dict[str, tuple[str, int, list[int], set[int]]] = {}  # id -> node, generation, lengths, unfinished
        self.num_submits: Counter[str] = Counter()
        self.num_cancels: Counter[str] = Counter()

    def send(self, node_id: str, generation: int, frame: link_pb2.ControllerFrame) -> bool:
        if self.registry.current(node_id, generation) is None:
            return False
        if frame.HasField("submit"):
            n = frame.submit.request.n or 1
            self.num_submits[frame.submit.request_id] += 1
            self.open[frame.submit.request_id] = (node_id, generation, [0] * n, set(range(n)))
            entry = self.registry.get(node_id)
            assert entry is not None and entry.in_flight <= max(entry.state.slots, 1)
        elif frame.HasField("cancel"):
            self.num_cancels[frame.cancel.request_id] += 1
        return True


class Simulation:
    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.registry, self.records = Registry(), Records()
        self.agents = Agents(self.registry)
        self.dispatcher = Dispatcher(self.registry, self.agents, self.records, Limits(max_waiting=4, max_wait_s=5))
        self.tasks: list[asyncio.Task[str]] = []

    async def client(self, name: str) -> str:
        """How the request ended for its client."""
        timeout_s = self.draw.choice([None, None, None, 0.003])
        pinned = self.draw.choice([None, None, "n1"])
        request = ids_request(n=self.draw.choice([0, 1, 2, 3]))
        indices: dict[int, int] = {}
        try:
            stream = await self.dispatcher.generate(request, GenerateOptions(name, pinned, timeout_s))
        except ControllerError as error:
            return f"refused {error.code}"
        try:
            async for outputs in stream:
                for item in outputs:
                    assert item.first_index == indices.get(item.choice, 0)
                    indices[item.choice] = item.first_index + len(item.token_ids)
            return "done"
        except ControllerError as error:
            return error.code
        finally:
            await stream.aclose()

    def step(self, number: int) -> None:
        action = self.draw.random()
        if action < 0.25:
            self.tasks.append(asyncio.get_running_loop().create_task(self.client(f"r{number}")))
        elif action < 0.32 and self.tasks:
            self.draw.choice(self.tasks).cancel()
        elif action < 0.40:
            self.lose_or_link(self.draw.choice(NODES))
        elif action < 0.44:
            entry = self.registry.get(self.draw.choice(NODES))
            if entry is not None:
                phase = self.draw.choice([node_pb2.NODE_PHASE_READY, node_pb2.NODE_PHASE_FAILED])
                state = ready_state(slots=self.draw.randint(1, 3))
                state.phase = phase
                self.registry.set_state(entry.id, entry.generation, state)
                self.dispatcher.pump()
        elif self.agents.open:
            self.emit(self.draw.choice(sorted(self.agents.open)))

    def lose_or_link(self, node_id: str) -> None:
        entry = self.registry.get(node_id)
        if entry is None or entry.link is LinkStatus.LOST:
            self.registry.register(node_id, ready_state(slots=self.draw.randint(1, 3)), 0.0)
        else:
            self.registry.lose(node_id, entry.generation, 0.0)
            self.dispatcher.on_node_lost(node_id, entry.generation)
        self.dispatcher.pump()

    def emit(self, request_id: str, *, is_last: bool = False) -> None:
        node_id, generation, lengths, unfinished = self.agents.open[request_id]
        choice = self.draw.choice(sorted(unfinished))
        reason = 0
        if is_last or self.draw.random() < 0.3:
            reason = ABORT if request_id in self.agents.num_cancels else STOP
            reason = self.draw.choice([reason, reason, reason, ERROR]) if not is_last else reason
        first = lengths[choice] + (1 if self.draw.random() < 0.03 and not is_last else 0)  # at times something was lost
        piece = output(request_id, first, range(self.draw.randint(0, 3)), reason, choice=choice)
        if reason == ERROR:
            piece.finish.error.code, piece.finish.error.retryable = "engine_failed", True
        lengths[choice] = first + len(piece.token_ids)
        if reason:
            unfinished.discard(choice)
        if not unfinished or reason == ERROR:
            del self.agents.open[request_id]
        self.dispatcher.on_outputs(
            node_id, generation, link_pb2.OutputBatch(outputs=[piece] * self.draw.choice([1, 1, 2]))
        )

    async def run(self) -> list[str]:
        for number in range(NUM_STEPS):
            self.step(number)
            await asyncio.sleep(0.001 if self.draw.random() < 0.1 else 0)
        for node_id in NODES:
            entry = self.registry.get(node_id)
            if entry is None or entry.link is LinkStatus.LOST:
                self.lose_or_link(node_id)
            else:
                self.registry.set_state(entry.id, entry.generation, ready_state(slots=3))
                self.dispatcher.pump()
        async with asyncio.timeout(20):
            while not all(task.done() for task in self.tasks):
                for request_id in sorted(self.agents.open):
                    self.emit(request_id, is_last=True)
                await asyncio.sleep(0.001)
            while any(entry.in_flight for entry in self.registry):
                for request_id in sorted(self.agents.open):
                    self.emit(request_id, is_last=True)
                await asyncio.sleep(0.02)
        return ["cancelled" if task.cancelled() else task.result() for task in self.tasks]


@pytest.mark.parametrize("seed", range(16))
async def test_each_request_ends_once_and_nothing_leaks(seed: int) -> None:
    simulation = Simulation(seed)
    ends = await simulation.run()
    assert ends
    recorded = Counter(record.id for record in simulation.records.records)
    assert set(recorded.values()) <= {1}, "a request was recorded twice"
    assert recorded.keys() >= simulation.agents.num_submits.keys(), "a request that reached a node was not recorded"
    assert set(simulation.agents.num_submits.values()) <= {1}, "a request was sent twice"
    assert set(simulation.agents.num_cancels.values()) <= {1}, "a request was cancelled twice"
    num_done = sum(end == "done" for end in ends)
    assert num_done <= sum(record.finish_reason == "stop" for record in simulation.records.records)
    assert simulation.dispatcher.num_waiting == 0
    assert all(entry.in_flight == 0 for entry in simulation.registry)
    # Every credit can be had again: a request as large as the node goes through.
    for entry in list(simulation.registry):
        assert entry.credits == entry.state.slots
