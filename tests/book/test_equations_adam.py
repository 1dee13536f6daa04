"""Every displayed equation of the Adam chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with `optimizers.Adam` fails. Everything is float64.
"""

import math

import pytest
import torch
from torch import Tensor

from optimizers import Adam

from .equations import Chapter

CHAPTER = Chapter("adaptive/adam")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, EPS = 0.01, 0.8, 0.95, 1e-3


def gradients(steps: int = 12) -> Tensor:
    """g_1, …, g_steps of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(
    g: Tensor, alpha: float = ALPHA, betas: tuple[float, float] = (BETA1, BETA2), eps: float = EPS
) -> list[dict[str, Tensor]]:
    """The package's θ, m and v after every step, from θ_0 = 0; index 0 is the start."""
    theta = torch.zeros(g.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = Adam([theta], lr=alpha, betas=betas, eps=eps)
    history = [{"theta": theta.detach().clone(), "m": torch.zeros_like(theta), "v": torch.zeros_like(theta)}]
    for gradient in g:
        theta.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[theta]
        history.append(
            {"theta": theta.detach().clone(), "m": state["exp_avg"].clone(), "v": state["exp_avg_sq"].clone()}
        )
    return history


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


@equation("eq-adam-rmsprop", r"v_t = \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2, \qquad v_0 = 0 ,")
@equation("eq-adam-v", r"v_t = \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2, \qquad v_0 = 0.")
def test_second_moment() -> None:
    g, h = gradients(), run(gradients())
    for t in range(1, len(g) + 1):
        close(h[t]["v"], BETA2 * h[t - 1]["v"] + (1 - BETA2) * g[t - 1] ** 2)


@equation("eq-adam-m", r"m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad m_0 = 0,")
def test_first_moment() -> None:
    g, h = gradients(), run(gradients())
    for t in range(1, len(g) + 1):
        close(h[t]["m"], BETA1 * h[t - 1]["m"] + (1 - BETA1) * g[t - 1])


@equation("eq-adam-unrolled", r"v_t = (1-\beta_2) \sum_{i=1}^{t} \beta_2^{\,t-i}\, g_i^2 .")
def test_unrolled() -> None:
    g, h = gradients(), run(gradients())
    for t in range(1, len(g) + 1):
        close(h[t]["v"], (1 - BETA2) * sum(BETA2 ** (t - i) * g[i - 1] ** 2 for i in range(1, t + 1)))


@equation(
    "eq-adam-bias",
    r"\mathbb{E}[v_t] = \mathbb{E}[g^2]\,(1-\beta_2)\sum_{i=1}^{t}\beta_2^{\,t-i}"
    r" = \mathbb{E}[g^2]\,\bigl(1-\beta_2^{\,t}\bigr) .",
)
def test_bias() -> None:
    # Gradients ±c: the square is its own expectation, so the identity holds without an average.
    c = 1.7
    h = run(c * gradients().sign())
    for t in range(1, len(h)):
        close(h[t]["v"], torch.full_like(h[t]["v"], c**2 * (1 - BETA2**t)))


@equation(
    "eq-adam-hat",
    r"\hat m_t = \frac{m_t}{1-\beta_1^{\,t}}, \qquad \hat v_t = \frac{v_t}{1-\beta_2^{\,t}} .",
)
@equation("eq-adam", r"\theta_t = \theta_{t-1} - \alpha\, \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} ,")
def test_step() -> None:
    h = run(gradients())
    for t in range(1, len(h)):
        m_hat, v_hat = h[t]["m"] / (1 - BETA1**t), h[t]["v"] / (1 - BETA2**t)
        close(h[t]["theta"], h[t - 1]["theta"] - ALPHA * m_hat / (v_hat.sqrt() + EPS))


@equation("eq-adam-startup", r"\frac{|\Delta_t|}{\alpha} = \frac{1-\beta_1^{\,t}}{\sqrt{1-\beta_2^{\,t}}} .")
def test_startup_without_correction() -> None:
    h = run(torch.full((40, 1), -3.0, dtype=torch.float64))
    for t in range(1, len(h)):
        uncorrected = h[t]["m"].abs() / h[t]["v"].sqrt()  # the package's own m and v, not divided
        close(uncorrected, torch.tensor([(1 - BETA1**t) / math.sqrt(1 - BETA2**t)], dtype=torch.float64))
    # One or more at every step, up to a height that grows with β₂, and back to one.
    t = torch.arange(1, 200_001, dtype=torch.float64)
    heights = []
    for beta2 in (0.99, 0.999, 0.9999):
        length = (1 - 0.9**t) / (1 - beta2**t).sqrt()
        assert length.min() >= 1 - 1e-12
        top = int(length.argmax())
        assert (length[: top + 1].diff() > 0).all()
        assert (length[top:].diff() <= 1e-15).all()
        assert length[-1] == pytest.approx(1, abs=1e-8)
        heights.append(float(length.max()))
    assert heights == sorted(heights)


@equation(
    "eq-adam-cauchy",
    r"m_t^2 = \Bigl(\sum_{i=1}^t (1-\beta_1)\,\beta_1^{\,t-i} g_i\Bigr)^{\!2}"
    r" \le \underbrace{(1-\beta_2)\sum_{i=1}^t \beta_2^{\,t-i} g_i^2}_{v_t}\;\cdot\;"
    r" \frac{(1-\beta_1)^2}{1-\beta_2} \sum_{i=1}^t \Bigl(\frac{\beta_1^2}{\beta_2}\Bigr)^{t-i} .",
)
def test_cauchy_schwarz() -> None:
    growing = torch.tensor([[(BETA2 / BETA1) ** k] for k in range(30)], dtype=torch.float64)
    for g, equality in ((gradients(30), False), (growing, True)):
        h = run(g)
        for t in range(1, len(h)):
            factor = (1 - BETA1) ** 2 / (1 - BETA2) * sum((BETA1**2 / BETA2) ** (t - i) for i in range(1, t + 1))
            m2, bound = h[t]["m"] ** 2, h[t]["v"] * factor
            assert (m2 <= bound * (1 + 1e-12)).all()
            if equality:
                close(m2, bound)


@equation(
    "eq-adam-bound",
    r"|\Delta_t| \;\le\; \alpha\,\frac{1-\beta_1}{\sqrt{1-\beta_2}}\cdot\frac{1}{\sqrt{1-\beta_1^2/\beta_2}} ,",
)
def test_longest_step() -> None:
    paper = (1 - BETA1) / math.sqrt(1 - BETA2)
    bound = paper / math.sqrt(1 - BETA1**2 / BETA2)
    growing = [0.0] * 400 + [(BETA2 / BETA1) ** k for k in range(120)]
    h = run(torch.tensor([growing], dtype=torch.float64).T, alpha=1.0, eps=1e-30)
    longest = max((h[t]["theta"] - h[t - 1]["theta"]).abs().item() for t in range(1, len(h)))
    assert longest <= bound * (1 + 1e-9)
    assert longest > 0.999 * bound  # the bound is tight …
    assert longest > 1.5 * paper  # … and far above the one that the paper gives


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
