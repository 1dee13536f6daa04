"""Every displayed equation of the chapter on curriculum learning, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package, the notebook or a simulation fails.
"""

import ast
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimizers import SGD

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("regularization/curriculum")
equation = CHAPTER.equation


def close(actual: Tensor | float, expected: Tensor | float, rtol: float = 1e-11, atol: float = 1e-13) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def of_notebook(*names: str) -> dict[str, Any]:
    """Functions of the notebook, without running it."""
    tree = ast.parse((ROOT / "notebooks" / "curriculum.py").read_text(encoding="utf-8"))
    wanted: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    assert len(wanted) == len(names)
    scope: dict[str, Any] = {"torch": torch, "math": math}
    exec(compile(ast.Module(wanted, []), "notebook", "exec"), scope)
    return scope


@equation(
    "eq-curriculum-weights",
    r"Q_t(z) = \frac{W_t(z)\, P(z)}{\sum_{z'} W_t(z')\, P(z')} ,",
)
@equation(
    "eq-curriculum-pacing",
    r"k_t = \min\Bigl(n,\ \bigl\lfloor n\, s_0\, a^{\lfloor t/p \rfloor} \bigr\rfloor\Bigr) ,",
)
def test_pacing_of_the_notebook() -> None:
    code = of_notebook("pool", "ranking")
    n, updates = 1000, 240
    sizes = [code["pool"]("easy", t, updates, n) for t in range(updates)]
    assert sizes == [min(n, math.floor(n * 0.04 * 1.9 ** (t // (updates // 12)))) for t in range(updates)]
    assert sizes[119] < n == sizes[120]  # "after six growths all examples are in", and full after half
    assert code["pool"]("plain", 0, updates, n) == n
    # Drawing from the first k_t is drawing from Q_t with weights 0 and 1, and its entropy never falls.
    difficulty = torch.tensor([0.8, 0.05, 0.2] * 4)
    order = code["ranking"]("easy", difficulty, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(12))
    assert difficulty[order].tolist() == sorted(difficulty.tolist())
    assert difficulty[code["ranking"]("hard", difficulty, torch.Generator().manual_seed(0))].tolist() == sorted(
        difficulty.tolist(), reverse=True
    )
    entropies = []
    for k in (1, 4, 9, 12):
        weight = torch.zeros(12).index_fill(0, order[:k], 1.0)
        q = weight / 12 / (weight / 12).sum()
        drawn = order[torch.randint(k, (60000,), generator=torch.Generator().manual_seed(k))]
        close(drawn.bincount(minlength=12) / 60000, q.double(), rtol=0, atol=0.01)
        entropies.append(float(-(q[q > 0] * q[q > 0].log()).sum()))
    assert entropies == sorted(entropies)


def package_step(w: Tensor, x: Tensor, y: Tensor, lr: float) -> Tensor:
    """One step of the package on (xᵀw − y)² for each row by itself."""
    w = w.clone().requires_grad_()
    optimizer = SGD([w], lr=lr)
    ((x * w).sum(1) - y).square().sum().backward()
    optimizer.step()
    return w.detach()


@equation("eq-curriculum-step", r"D' = D - 2\alpha\,(x^\top D - \epsilon)\, x .")
def test_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    best, w = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    epsilon = torch.randn(50, generator=generator, dtype=torch.float64)
    after = package_step(w.repeat(50, 1), x, x @ best + epsilon, 0.03)
    offset = w - best
    close(after - best, offset - 2 * 0.03 * (x @ offset - epsilon)[:, None] * x)


@equation(
    "eq-curriculum-decrease",
    r"\lVert D\rVert^2 - \mathbb{E}\,\lVert D'\rVert^2 = 4\alpha\, D^\top S D - 4\alpha^2 \Bigl("
    r" \mathbb{E}\bigl[\lVert x\rVert^2 (x^\top D)^2\bigr] + \Psi\, \mathbb{E}\lVert x\rVert^2 \Bigr) ,",
)
def test_decrease_for_any_distribution() -> None:
    # A distribution of eight examples, each with both signs of ε: the mean over them is exact.
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(8, 3, generator=generator, dtype=torch.float64) + 0.5
    offset, lr = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.02
    x = points.repeat(2, 1)
    for difficulty in (0.0, 1.0, 7.0):
        epsilon = math.sqrt(difficulty) * torch.cat([torch.ones(8), -torch.ones(8)]).double()
        after = package_step(offset.repeat(16, 1), x, epsilon, lr)
        second = points.T @ points / 8
        lengths = points.square().sum(1)
        fourth = (lengths * (points @ offset).square()).mean()
        right = 4 * lr * offset @ second @ offset - 4 * lr**2 * (fourth + difficulty * lengths.mean())
        close(offset @ offset - after.square().sum(1).mean(), right)


def gaussian(squared: float, difficulty: float, lr: float, d: int) -> float:
    return 4 * lr * squared - 4 * lr**2 * ((d + 2) * squared + difficulty * d)


@equation(
    "eq-curriculum-gaussian",
    r"\lVert D\rVert^2 - \mathbb{E}\,\lVert D'\rVert^2 = 4\alpha\,\lVert D\rVert^2"
    r" - 4\alpha^2 \bigl( (d+2)\,\lVert D\rVert^2 + \Psi\, d \bigr) .",
)
def test_decrease_for_gaussian_examples() -> None:
    # Points at ±√3 and 0 with weights 1/6, 2/3, 1/6 have a normal number's moments up to the fifth: exact here.
    d, lr = 3, 0.05
    nodes = list(itertools.product((-math.sqrt(3), 0.0, math.sqrt(3)), repeat=d))
    weights = [math.prod(2 / 3 if v == 0 else 1 / 6 for v in node) for node in nodes]
    weight = torch.tensor(weights, dtype=torch.float64)
    x = torch.tensor(nodes, dtype=torch.float64)
    offset = torch.tensor([1.0, -0.4, 2.0], dtype=torch.float64)
    squared = float(offset @ offset)
    for difficulty in (0.0, 2.0):
        mean = 0.0
        for sign in (1, -1):
            y = torch.full((len(nodes),), sign * math.sqrt(difficulty), dtype=torch.float64)
            after = package_step(offset.repeat(len(nodes), 1), x, y, lr)
            mean += 0.5 * float(weight @ after.square().sum(1))
        close(squared - mean, gaussian(squared, difficulty, lr, d), rtol=1e-9)
    expected = of_notebook("expected_decrease")["expected_decrease"]
    close(expected(1.7, 0.6, 0.02, 10), gaussian(1.7, 0.6, 0.02, 10))
    # The numbers of the text, and the fact that they fall in a line.
    table = [gaussian(10.25, psi, 0.01, 10) for psi in (0, 0.25, 1, 4, 9)]
    assert [round(value, 4) for value in table] == [0.3608, 0.3598, 0.3568, 0.3448, 0.3248]
    assert round(gaussian(1, 0, 0.01, 10), 3) == 0.035
    assert round(4 * 0.01**2 * 9 * 10, 3) == 0.036


def retained(lr: float, d: int) -> float:
    return 1 - 4 * lr + 4 * lr**2 * (d + 2)


def course(start: float, difficulties: list[float], rates: list[float], d: int) -> list[float]:
    path = [start]
    for difficulty, lr in zip(difficulties, rates, strict=True):
        path.append(retained(lr, d) * path[-1] + 4 * lr**2 * d * difficulty)
    return path


@equation(
    "eq-curriculum-recursion",
    r"\mathbb{E}\,\lVert D_t\rVert^2 = a_t\, \mathbb{E}\,\lVert D_{t-1}\rVert^2 + 4\alpha_t^2\, d\, \Psi_t,"
    r" \qquad a_t = 1 - 4\alpha_t + 4\alpha_t^2\,(d+2) .",
)
@equation(
    "eq-curriculum-course",
    r"\mathbb{E}\,\lVert D_T\rVert^2 = \Bigl(\prod_{t=1}^{T} a_t\Bigr) \lVert D_0\rVert^2"
    r" + \sum_{t=1}^{T} c_t\, \Psi_t , \qquad c_t = 4\, d\, \alpha_t^2 \prod_{i=t+1}^{T} a_i .",
)
@equation("eq-curriculum-constant", r"c_t = 4\, d\, \alpha^2\, a^{\,T-t} ,")
def test_a_whole_course() -> None:
    d, steps = 10, 30
    difficulties = [0.3 * (t % 4) for t in range(steps)]
    for rates in ([0.02] * steps, [0.04 * (1 - t / steps) for t in range(steps)]):
        path = course(1.0, difficulties, rates, d)
        close(path[1], 1.0 - gaussian(1.0, difficulties[0], rates[0], d))
        a = [retained(lr, d) for lr in rates]
        c = [4 * d * lr**2 * math.prod(a[t + 1 :]) for t, lr in enumerate(rates)]
        close(path[-1], math.prod(a) + sum(x * y for x, y in zip(c, difficulties, strict=True)))
        if len(set(rates)) == 1:
            close(
                torch.tensor(c), torch.tensor([4 * d * 0.02**2 * a[0] ** (steps - t) for t in range(1, steps + 1)])
            )
    # Against the package: 20,000 courses.
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(20000, d, dtype=torch.float64)
    w[:, 0] = 1.0
    for difficulty in difficulties:
        x = torch.randn(20000, d, generator=generator, dtype=torch.float64)
        y = math.sqrt(difficulty) * torch.randn(20000, generator=generator, dtype=torch.float64)
        w = package_step(w, x, y, 0.02)
    close(w.square().sum(1).mean(), course(1.0, difficulties, [0.02] * steps, d)[-1], rtol=0.03)


def test_easy_to_hard_is_the_worst_of_all_orders() -> None:
    difficulties = [0.0, 0.1, 0.3, 0.9, 2.0, 4.0]
    ends = {p: course(1.0, list(p), [0.02] * 6, 10)[-1] for p in itertools.permutations(difficulties)}
    assert max(ends, key=ends.__getitem__) == tuple(difficulties)
    assert min(ends, key=ends.__getitem__) == tuple(reversed(difficulties))


@equation(
    "eq-curriculum-turn",
    r"c_{t+1} < c_t \iff \frac{\alpha_{t+1}}{\alpha_t} < \sqrt{a_{t+1}} ,",
)
def test_where_the_order_turns() -> None:
    d, steps = 10, 60
    rates = [0.02 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]
    a = [retained(lr, d) for lr in rates]
    c = [4 * d * lr**2 * math.prod(a[t + 1 :]) for t, lr in enumerate(rates)]
    falls = [c[t + 1] < c[t] for t in range(steps - 1)]
    assert falls == [rates[t + 1] / rates[t] < math.sqrt(a[t + 1]) for t in range(steps - 1)]
    assert True in falls
    assert False in falls
    close(math.sqrt(retained(1e-4, d)), 1 - 2e-4, rtol=1e-6)
    # The figure: with a constant rate easy first is ahead up to step 40 and behind at the end.
    easy = [noise**2 for noise in (0.05, 0.2, 0.8) for _ in range(20)]
    paths = [course(1.0, order, [0.02] * 60, d) for order in (easy, [float(np.mean(easy))] * 60)]
    assert all(e < r for e, r in zip(paths[0][1:41], paths[1][1:41], strict=True))
    assert paths[0][60] > paths[1][60]


def test_solutions_of_the_exercises() -> None:
    squared, difficulty, d = 0.7, 3.0, 10
    # When a step does harm
    for lr in (0.01, 0.03):
        close(gaussian(squared, squared * (1 - lr * (d + 2)) / (lr * d), lr, d), 0.0)
    # The best learning rate
    best = squared / (2 * ((d + 2) * squared + difficulty * d))
    close(gaussian(squared, difficulty, best, d), squared**2 / ((d + 2) * squared + difficulty * d))
    assert gaussian(squared, difficulty, best, d) > gaussian(squared, difficulty, 1.01 * best, d)
    assert gaussian(squared, difficulty, best, d) > gaussian(squared, difficulty, 0.99 * best, d)
    # Difficulty seen by the current weights: the slope of xᵀD on r
    generator = torch.Generator().manual_seed(0)
    along = math.sqrt(squared) * torch.randn(400_000, generator=generator, dtype=torch.float64)
    r = along - math.sqrt(difficulty) * torch.randn(400_000, generator=generator, dtype=torch.float64)
    close((along * r).mean() / r.square().mean(), squared / (squared + difficulty), rtol=0.02)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
