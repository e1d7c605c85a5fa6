"""Muon for the matrices of the layers, AdamW for everything else.

Muon orthogonalises the momentum of a matrix by five Newton-Schulz steps before it is applied
(Jordan et al. 2024; scaled to the size of an AdamW update as in arXiv 2502.16982).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
DECAY = 0.05
BETAS = (0.9, 0.95)


def newton_schulz(g: Tensor) -> Tensor:
    """Approximate orthogonalisation of g [n, rows, cols] with rows <= cols, in bf16."""
    x: Tensor = g.to(torch.bfloat16)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(torch.bfloat16)
    for _ in range(5):
        xx = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * xx + 2.0315 * (xx @ xx)) @ x
    return x.float()


class Optimiser:
    """Both optimisers over named parameters; ``step`` takes the learning rate."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.matrices: dict[str, nn.Parameter] = {}
        self.others: dict[str, nn.Parameter] = {}
        for name, w in parameters.items():
            small = "embed" in name or "in_proj_a" in name or "in_proj_b" in name
            (self.matrices if w.ndim == 2 and not small else self.others)[name] = w
        self.groups: dict[tuple[int, int], list[tuple[str, bool]]] = defaultdict(list)
        for name, w in self.matrices.items():
            rows, cols = w.shape
            self.groups[(min(rows, cols), max(rows, cols))].append((name, rows > cols))
        self.buffer = {n: torch.zeros_like(w) for n, w in self.matrices.items()}
        self.first = {n: torch.zeros_like(w) for n, w in self.others.items()}
        self.second = {n: torch.zeros_like(w) for n, w in self.others.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients of the parameters, which are cleared."""
        self.count += 1
        for (_, cols), members in self.groups.items():
            updates = []
            for name, tall in members:
                g, b = self.matrices[name].grad, self.buffer[name]
                assert g is not None
                b.mul_(MOMENTUM).add_(g)
                u = g.add(b, alpha=MOMENTUM)
                updates.append(u.t() if tall else u)
            done = newton_schulz(torch.stack(updates))
            scale = rate * 0.2 * cols**0.5
            for (name, tall), u in zip(members, done, strict=True):
                w = self.matrices[name]
                w.mul_(1 - rate * DECAY).add_(u.t() if tall else u, alpha=-scale)
                w.grad = None
        grads = [w.grad for w in self.others.values() if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
        clip = min(1.0, 1.0 / (float(norm) + 1e-6))
        c1, c2 = 1 - BETAS[0] ** self.count, 1 - BETAS[1] ** self.count
        for name, w in self.others.items():
            assert w.grad is not None
            g = w.grad * clip
            m, v = self.first[name], self.second[name]
            m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            if w.ndim == 2:
                w.mul_(1 - rate * DECAY)
            w.addcdiv_(m / c1, (v / c2).sqrt().add_(1e-10), value=-rate)
            w.grad = None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"buffer": self.buffer, "first": self.first, "second": self.second, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of :meth:`state`."""
        self.buffer, self.first, self.second = state["buffer"], state["first"], state["second"]
        self.count = state["count"]
