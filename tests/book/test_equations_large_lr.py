"""Every displayed equation of the chapter on large initial learning rates, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package, or with numerical integration, fails.
"""

import math

import numpy as np
import torch
from scipy.integrate import quad  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from optimizers import SGD, GradientNoise

from .equations import Chapter

CHAPTER = Chapter("regularization/large_lr")
equation = CHAPTER.equation


def close(actual: Tensor | float, expected: Tensor | float, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def shaken(h: float, lr: float, sigma: float, steps: int, runs: int = 20000) -> list[float]:
    """The variance over many runs of the package's SGD at curvature h, after each step."""
    theta = torch.full((runs,), 3.0, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=lr, extensions=[GradientNoise(eta=sigma**2, gamma=0.0)])
    variances = []
    for _ in range(steps):
        theta.grad = h * theta.detach()
        optimizer.step()
        variances.append(float(theta.detach().var()))
    return variances


@equation(
    "eq-large-lr-variance",
    r"\operatorname{Var}[\theta_t] = \alpha^2\sigma^2 \sum_{i=0}^{t-1} q^{2i}"
    r" = \alpha^2\sigma^2\, \frac{1-q^{2t}}{1-q^2} .",
)
@equation("eq-large-lr-rest", r"\tau^2 = \frac{\alpha\,\sigma^2}{h\,(2 - \alpha h)} .")
def test_the_learning_rate_is_a_noise_level() -> None:
    for h, lr, sigma in ((1.0, 0.3, 1.0), (20.0, 0.05, 2.0), (20.0, 0.09, 0.5)):
        q = 1 - lr * h
        measured = shaken(h, lr, sigma, 40)
        for t in (1, 3, 40):
            exact = lr**2 * sigma**2 * (1 - q ** (2 * t)) / (1 - q**2)
            close(lr**2 * sigma**2 * sum(q ** (2 * i) for i in range(t)), exact)
            close(measured[t - 1], exact, rtol=0.04)  # sampling: 1 % is one standard deviation
        close(lr**2 * sigma**2 / (1 - q**2), lr * sigma**2 / (h * (2 - lr * h)))
        close(np.mean(measured[-5:]), lr * sigma**2 / (h * (2 - lr * h)), rtol=0.04)


def contrast(w: Tensor, z: Tensor, zeta: Tensor) -> Tensor:
    return (w @ (z + zeta)).relu() + (w @ (z - zeta)).relu() - 2 * (w @ z).relu()


@equation(
    "eq-large-lr-contrast",
    r"\begin{aligned} C(w) &= \bigl(w^\top(z+\zeta)\bigr)_+ + \bigl(w^\top(z-\zeta)\bigr)_+"
    r" - 2\,\bigl(w^\top z\bigr)_+ \\ &= \bigl(\,|w^\top\zeta| - |w^\top z|\,\bigr)_+ . \end{aligned}",
)
def test_contrast_of_a_neuron() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    z, zeta = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    exact = ((w @ zeta).abs() - (w @ z).abs()).relu()
    assert 0 < (exact > 0).sum() < 2000
    close(contrast(w, z, zeta), exact)


def s(x: float) -> float:
    return float(x * norm.cdf(x) + norm.pdf(x))


@equation("eq-large-lr-soft", r"s(x) = \mathbb{E}\,(x + n)_+ = x\,\Phi(x) + \varphi(x) ,")
def test_smoothed_relu() -> None:
    for x in (-2.0, -0.3, 0.0, 0.7, 3.0):
        close(s(x), quad(lambda n, x=x: (x + n) * norm.pdf(n), -x, 12)[0], rtol=1e-8)


def visible(w: Tensor, z: Tensor, zeta: Tensor, tau: float) -> float:
    up, down, mid = ((p, tau * float(p.norm())) for p in (z + zeta, z - zeta, z))
    terms = [deviation * s(float(w @ p) / deviation) for p, deviation in (up, down, mid)]
    return terms[0] + terms[1] - 2 * terms[2]


@equation(
    "eq-large-lr-visible",
    r"\begin{aligned} C_\tau(\bar w) = \mathbb{E}\,C(w) ={} &"
    r" \tau_+\, s\!\left(\frac{\bar w^\top (z + \zeta)}{\tau_+}\right)"
    r" + \tau_-\, s\!\left(\frac{\bar w^\top (z - \zeta)}{\tau_-}\right)"
    r" \\ & - 2\,\tau\lVert z\rVert\, s\!\left(\frac{\bar w^\top z}{\tau\lVert z\rVert}\right) . \end{aligned}",
)
@equation(
    "eq-large-lr-faint",
    r"C_\tau(\bar w) - C_\tau(0) \approx \frac{(\bar w^\top\zeta)^2}{\sqrt{2\pi}\;\tau\lVert z\rVert} ,",
)
def test_what_noise_leaves_of_a_contrast() -> None:
    generator = torch.Generator().manual_seed(1)
    w, z, zeta = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(3))
    n = torch.randn(2_000_000, 3, generator=generator, dtype=torch.float64)
    for tau in (0.1, 0.5, 2.0):
        close(contrast(w + tau * n, z, zeta).mean(), visible(w, z, zeta, tau), rtol=0.01, atol=1e-4)
    # Without noise, it is the contrast itself.
    close(visible(w, z, zeta, 1e-9), contrast(w[None], z, zeta)[0], atol=1e-8)
    # A kink in the right place, narrow against the noise.
    z, zeta = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 0.02]).double()
    w = torch.tensor([0.0, 1.0]).double()
    faint = float(w @ zeta) ** 2 / (math.sqrt(2 * math.pi) * 0.3 * 2.0)
    close(visible(w, z, zeta, 0.3) - visible(0 * w, z, zeta, 0.3), faint, rtol=1e-3)


@equation(
    "eq-large-lr-slope",
    r"\begin{aligned} \nabla C_\tau(\bar w) ={} & (z+\zeta)\,\Phi\!\left(\frac{\bar w^\top(z+\zeta)}{\tau_+}\right)"
    r" + (z-\zeta)\,\Phi\!\left(\frac{\bar w^\top(z-\zeta)}{\tau_-}\right)"
    r" \\ & - 2\,z\,\Phi\!\left(\frac{\bar w^\top z}{\tau\lVert z\rVert}\right) , \end{aligned}",
)
def test_slope_of_the_visible_contrast() -> None:
    z, zeta = torch.tensor([1.0, 0.2]).double(), torch.tensor([-0.1, 0.3]).double()
    tau, step = 0.4, 1e-5

    def slope(w: Tensor) -> Tensor:
        parts = [(1.0, z + zeta), (1.0, z - zeta), (-2.0, z)]
        return sum((f * p * norm.cdf(float(w @ p) / (tau * float(p.norm()))) for f, p in parts), torch.zeros(2))

    for w in (torch.tensor([0.3, -0.5]).double(), torch.tensor([-0.2, 0.9]).double()):
        for i, unit in enumerate(torch.eye(2, dtype=torch.float64)):
            ahead, behind = (visible(w + sign * step * unit, z, zeta, tau) for sign in (1, -1))
            close(slope(w)[i], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
        assert slope(w).norm() > 0.01
    close(slope(torch.zeros(2, dtype=torch.float64)), torch.zeros(2, dtype=torch.float64))


@equation(
    "eq-large-lr-logistic",
    r"\nabla_\theta \ln\bigl(1 + e^{-y f(x)}\bigr) = -\frac{y}{1 + e^{\,y f(x)}}\; \nabla_\theta f(x) .",
)
def test_a_fitted_example_teaches_little() -> None:
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    for y in (1.0, -1.0):
        theta = torch.tensor([1.0, 0.3, 1.1], dtype=torch.float64, requires_grad=True)
        score = (theta * x).tanh().sum() * 3
        (of_score,) = torch.autograd.grad(score, theta, retain_graph=True)
        (of_loss,) = torch.autograd.grad(F.softplus(-y * score), theta)
        close(of_loss, -y / (1 + math.exp(y * float(score.detach()))) * of_score)
    assert 1 / (1 + math.exp(5)) < 0.01  # "weighs less than a hundredth"


def error(mu: float, d: int, n: float) -> float:
    return float(norm.cdf(-(mu**2) / math.sqrt(mu**2 + d / n)))


@equation(
    "eq-large-lr-samples",
    r"\Pr[\text{error}] \approx \Phi\!\left(-\frac{\mu^2}{\sqrt{\mu^2 + d/N}}\right) .",
)
def test_error_of_a_rule_from_few_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    for mu, d, n in ((2.0, 500, 250), (2.0, 500, 40), (1.0, 200, 100)):
        errors = []
        for _ in range(60):
            y = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
            x = torch.randn(n, d, generator=generator)
            x[:, 0] += mu * y
            rule = (y[:, None] * x).mean(0).double()
            # The error on new examples, exactly: y wᵀx is normal with mean μ w₁ and deviation ‖w‖.
            errors.append(float(norm.cdf(-mu * float(rule[0]) / float(rule.norm()))))
        assert abs(np.mean(errors) - error(mu, d, n)) < 0.01
    # "5 % with 250 examples and 14 % with a fifth of them", and the exercise
    assert [round(100 * error(2.0, 500, n)) for n in (250, 50)] == [5, 14]
    assert [round(100 * float(norm.cdf(-2 * math.sqrt(share))), 1) for share in (1, 0.2)] == [2.3, 18.6]


def test_numbers_of_the_text() -> None:
    def rest(lr: float, h: float) -> float:
        return math.sqrt(lr / (h * (2 - lr * h)))

    assert [round(rest(0.05, h), 2) for h in (1.0, 20.0)] == [0.16, 0.05]
    assert [round(rest(0.002, h), 2) for h in (1.0, 20.0)] == [0.03, 0.01]
    assert round(rest(0.05, 1) / rest(0.002, 1), 2) == 5.06
    assert round(rest(0.05, 20) / rest(0.002, 20)) == 7
    # The exercise on momentum: its formula, against the exact covariance of the pair of position and velocity.
    for h, lr, mu in ((1.0, 0.1, 0.9), (20.0, 0.05, 0.5)):
        matrix = np.array([[1 - lr * h, -lr * mu], [h, mu]])
        noise = np.array([-lr, 1.0])
        covariance = np.zeros((2, 2))
        for _ in range(2000):
            covariance = matrix @ covariance @ matrix.T + np.outer(noise, noise)
        close(covariance[0, 0], lr * (1 + mu) / (h * (1 - mu) * (2 * (1 + mu) - lr * h)))


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
