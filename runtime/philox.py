"""Philox-4x32-10, the counter-based generator: chance as a pure function of a key and a counter.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). There is no state to carry: draw `index`
of choice `choice` under `seed` is the same number whatever else is in the batch, after a pre-emption, and on another machine.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10

Words4 = tuple[int, int, int, int]


def philox_4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four 32-bit words out of a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _MASK
        k1 = (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, index: int) -> float:
    """The draw for generated token `index` of choice `choice`: one of 2^53 values in [0, 1).

    `seed` counts modulo 2^64 (a negative one is its two's complement), `choice` modulo 2^32, `index` modulo 2^64.
    """
    counter = (index & _MASK, (index >> 32) & _MASK, choice & _MASK, 0)
    high, low, _, _ = philox_4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return float((high >> 5) * 2**26 + (low >> 6)) * 2.0**-53
