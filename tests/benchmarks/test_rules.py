"""The rules that are compared: that they are the same rules, and that the bytes counted are the bytes moved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import candidates
from benchmarks.plan import KNOWN
from benchmarks.rules import ETA, GAMMA, KEEP, LIBRARIES, PEERS, RULES, by_hand


def parameters(size: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(size, generator=generator).requires_grad_() for _ in range(2)]
    for p in params:
        p.grad = torch.randn(size, generator=generator)
    return params


def per_coordinate(optimizer: torch.optim.Optimizer, param: Tensor) -> list[str]:
    return [name for name, value in optimizer.state[param].items() if value.shape == param.shape]


@pytest.mark.parametrize("name", RULES)
def test_streams_are_the_tensors_that_a_step_touches(name: str) -> None:
    """The gradient is read; the parameter and the state are read and written, slow weights once a period."""
    rule, params = RULES[name], parameters()
    optimizer = rule.ours(params, fused=False)
    for _ in range(6):
        optimizer.step()
    state = per_coordinate(optimizer, params[0])
    slow = [tensor for tensor in state if tensor.startswith("slow")]
    assert bool(slow) == (rule.period > 1)
    assert rule.streams == pytest.approx(3 + 2 * (len(state) - len(slow)) + 2 * len(slow) / rule.period)


@pytest.mark.parametrize("name", [name for name, rule in KNOWN.items() if rule.torch])
def test_torch_has_the_same_rule(name: str) -> None:
    """Same hyper-parameters, same path."""
    ours, theirs = parameters(), parameters()
    rule = KNOWN[name]
    assert rule.torch is not None
    steps = [rule.ours(ours, fused=False).step, rule.torch(theirs, foreach=False).step]
    for _ in range(8):
        for step in steps:
            step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_by_hand_is_noise_then_the_step_then_the_mask() -> None:
    params = parameters()
    start, grads = [p.detach().clone() for p in params], [p.grad.clone() for p in params]  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(params, lr=0.1)
    by_hand(optimizer, params, masks=True, noise=True)
    torch.manual_seed(3)
    optimizer.step()
    torch.manual_seed(3)
    noises = [torch.randn_like(grad) for grad in grads]
    for p, old, grad, noise in zip(params, start, grads, noises, strict=True):
        noisy = grad + (ETA / 1**GAMMA) ** 0.5 * noise
        mask = torch.bernoulli(torch.full_like(old, KEEP))
        assert 0 < mask.mean() < 1
        torch.testing.assert_close(p.detach(), old - 0.1 * mask * noisy, rtol=1e-5, atol=1e-6)


def test_every_candidate_is_of_a_known_library() -> None:
    for rule in RULES.values():
        names = candidates.of(rule, compiled=True)
        assert {candidates.library_of(name) for name in names} <= {*candidates.OWN, *LIBRARIES}
    assert set(candidates.of(RULES["adam"], ["torch"])) == {"torch_loop", "torch_foreach", "torch_fused"}


def test_what_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: Any) -> Any:
        def raises() -> None:
            raise RuntimeError("no\ncompiler")

        return raises

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(candidates.Skip, match=r"torch.compile raised RuntimeError: no compiler"):
        candidates.of(RULES["adam"], compiled=True)["torch_compiled"]([torch.zeros(3)])


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "nobody", ("no_such_module", "no-such-package"))
    with pytest.raises(candidates.Skip, match=r"no_such_module.*pip install no-such-package"):
        candidates.library("nobody")


def test_what_another_library_raises_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any, params: list[Tensor]) -> Any:
        raise RuntimeError("not\nwith this torch")

    monkeypatch.setattr(candidates, "library", lambda name: None)
    with pytest.raises(candidates.Skip, match=r"RuntimeError: not with this torch"):
        candidates._peer("kozistr", broken, parameters())


def test_the_kernel_alone_takes_the_same_steps() -> None:
    alone, whole = parameters(), parameters()
    kernel = candidates.of(RULES["adamw"])["ours_kernel"](alone)
    step = candidates.of(RULES["adamw"])["ours_fused"](whole)
    for _ in range(3):  # what the kernel's builder has taken already
        step()
    for _ in range(5):
        kernel()
        step()
    for p, q in zip(alone, whole, strict=True):
        assert torch.equal(p, q)
