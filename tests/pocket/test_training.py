"""The training form: its delta rule, convolution and gradients; equal runs give equal weights."""

from random import Random

import pytest
import torch
import torch.nn.functional as F

from models.pocket.batches import collate
from models.pocket.curriculum import measured_conversation
from models.pocket.delta_rule import Shape, _CausalConv, _UnitLowerInverse, chunk_length, delta_rule
from models.pocket.evaluate import by_training_form, score
from models.pocket.model import Pocket, initialise
from models.pocket.tokenizer import Encoder, load
from models.pocket.train import CYCLES, STEPS, loss_of, parse, rate_at, train


@pytest.fixture(autouse=True)
def as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def token_by_token(q, k, v, g, beta):
    """The recurrence itself: q, k [T, d], v [T, d], g, beta [T] of one head."""
    S = torch.zeros(k.shape[1], v.shape[1], dtype=q.dtype)
    out = []
    for t in range(len(q)):
        S = torch.exp(g[t]) * S
        S = S + torch.outer(k[t], beta[t] * (v[t] - S.T @ k[t]))
        out.append(S.T @ q[t])
    return torch.stack(out)


@pytest.mark.parametrize(("chunks", "c"), [(1, 8), (1, 64), (3, 16), (5, 40)])
def test_the_chunked_rule_is_the_recurrence(chunks, c):
    torch.manual_seed(chunks)
    m, B, hk, r, d = chunks, 2, 2, 2, 16
    q = torch.randn(m, B, hk, 1, c, d) / 4
    k = F.normalize(torch.randn(m, B, hk, 1, c, d), dim=-1).requires_grad_()
    v = torch.randn(m, B, hk, r, c, d)
    g = -torch.rand(m, B, hk, r, c)
    beta = torch.rand(m, B, hk, r, c)
    o = delta_rule(q, k, v, g.cumsum(-1), beta)
    o.square().sum().backward()
    got, k.grad = k.grad.clone(), None
    total = torch.zeros(())
    for b in range(B):
        for h in range(hk):
            for i in range(r):
                expected = token_by_token(
                    q[:, b, h, 0].reshape(-1, d), k[:, b, h, 0].reshape(-1, d), v[:, b, h, i].reshape(-1, d),
                    g[:, b, h, i].reshape(-1), beta[:, b, h, i].reshape(-1),
                )  # fmt: skip
                assert torch.allclose(o[:, b, h, i].reshape(-1, d), expected, atol=2e-5)
                total = total + expected.square().sum()
    total.backward()
    assert torch.allclose(got, k.grad, atol=1e-4 * float(k.grad.abs().max()) + 1e-6)


def test_the_inverse_of_equal_keys_is_exact():
    a = torch.ones(1, 64, 64).tril(-1)
    x = _UnitLowerInverse.apply(a)
    assert torch.equal((torch.eye(64) + a) @ x, torch.eye(64).expand(1, 64, 64))


@pytest.mark.parametrize("T", [1, 2, 9])
def test_the_convolution_and_its_gradient(T):
    torch.manual_seed(T)
    x = torch.randn(2, T, 8, dtype=torch.double, requires_grad=True)
    w = torch.randn(8, 1, 4, dtype=torch.double, requires_grad=True)
    y = _CausalConv.apply(x, w)
    expected = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), w, groups=8)).transpose(1, 2)
    assert torch.allclose(y, expected)
    g = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(expected, (x, w), g), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 8, 63, 64, 65, 500, 1600])
def test_chunks_cover_the_tokens(tokens):
    T, c = chunk_length(tokens)
    assert tokens <= T and T % c == 0 and c <= 64 and T - tokens < 8 * (T // c)


def test_padding_changes_nothing():
    model = Pocket(Shape(), "f32")
    initialise(model, 1)
    rows = [([5, 6, 7, 8, 9], [True] * 5), (list(range(100)), [True] * 100)]
    both, alone = collate(rows), collate(rows[:1])
    with torch.no_grad():
        a = model.hidden(both.ids, both.chunk)[0, :5]
        b = model.hidden(alone.ids, alone.chunk)[0, :5]
        selected = model.hidden(both.ids, both.chunk, both.select)[:4]
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(a[:4], selected, atol=1e-5)


def test_the_rate_rises_stays_and_falls():
    rates = [rate_at(s, STEPS) for s in range(STEPS)]
    assert max(rates) == rates[STEPS // 6] and rates[0] < rates[39] and rates[-1] < 0.012 * max(rates)


def test_each_further_cycle_begins_at_its_peak_and_ends_low():
    rates = [rate_at(s, STEPS) for s in range(STEPS)]
    for start, peak in CYCLES:
        begin = round(start * STEPS)
        assert rates[begin - 1] < 0.012 * max(rates)
        assert rates[begin] == pytest.approx(peak * max(rates))


def run(folder, steps, *more):
    args = ["--out", str(folder), "--steps", str(steps), "--log", "1000", "--save", "1000", *more]
    return train(parse(args)).state_dict()


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


def test_two_short_runs_are_equal_and_a_resumed_one_too(tmp_path):
    whole = run(tmp_path / "a", 2)
    run(tmp_path / "b", 2, "--stop", "1")
    assert same(whole, run(tmp_path / "b", 2, "--resume"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_steps_twice_are_equal(tmp_path):
    assert same(run(tmp_path / "a", 50), run(tmp_path / "b", 50))


def test_scoring_sees_a_wrong_answer():
    model = Pocket(Shape(), "f32")
    initialise(model, 1)
    encoder = Encoder(load())
    c = measured_conversation(Random(1), "copy", encoder.count)
    assert not score(by_training_form(model), encoder, [c])[0].right
    assert torch.isfinite(loss_of(model, collate([encoder.conversation(c)])))
