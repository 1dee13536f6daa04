"""Every displayed equation of the chapter on adaptive methods' marginal value, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package fails. Everything is float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from optimizers import SGD, Adagrad, Adam, Chain, RMSprop

from .equations import Chapter

CHAPTER = Chapter("why/marginal_value")
equation = CHAPTER.equation
SIZES = [(4, 2), (5, 4), (7, 1)]  # n_+, n_-


def close(actual: Tensor | float, expected: Tensor | float, rtol: float = 1e-11, atol: float = 1e-13) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def problem(positive: int, negative: int) -> tuple[Tensor, Tensor]:
    """X of shape (n, 3 + 5 n) and y of shape (n,), feature by feature as the chapter describes them."""
    labels = ([1.0, -1.0] * min(positive, negative) + [1.0] * positive)[: positive + negative]
    rows = []
    for i, y in enumerate(labels):
        row = [0.0] * (3 + 5 * len(labels))
        row[:3] = [y, 1.0, 1.0]
        star = 0.0 if y > 0 else 1.0
        row[3 + 5 * i : 8 + 5 * i] = [1.0, star, star, star, star]
        rows.append(row)
    assert labels.count(-1.0) == negative
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)


def gradient(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    return x.T @ (x @ theta - y) / len(y)


def descend(
    make: Callable[[list[Tensor]], Chain], x: Tensor, y: Tensor, steps: int, decay: float = 1.0
) -> list[Tensor]:
    """θ_0 = 0, θ_1, …, θ_T by the package."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    path = [theta.detach().clone()]
    for _ in range(steps):
        theta.grad = gradient(x, y, theta.detach())
        optimizer.step()
        scheduler.step()
        path.append(theta.detach().clone())
    return path


ADAPTIVE = [
    (lambda p: Adam(p, lr=0.02, eps=1e-14), 0.99),
    (lambda p: RMSprop(p, lr=0.01, eps=1e-14), 0.98),
    (lambda p: Adagrad(p, lr=0.1, eps=1e-14), 1.0),
]


@equation(
    "eq-marginal-loss",
    r"f(\theta) = \frac{1}{2n} \lVert X\theta - y \rVert^2, \qquad"
    r" \nabla f(\theta) = \frac1n X^\top (X\theta - y) .",
)
def test_gradient() -> None:
    x, y = problem(4, 2)
    theta = torch.linspace(-1, 1, x.shape[1], dtype=torch.float64).requires_grad_()
    (by_autograd,) = torch.autograd.grad((x @ theta - y).square().sum() / (2 * len(y)), theta)
    close(gradient(x, y, theta.detach()), by_autograd)


@equation("eq-marginal-norm", r"\theta_{\mathrm{SGD}} = X^\top (X X^\top)^{-1} y .")
def test_sgd_finds_the_shortest_solution() -> None:
    x, y = problem(4, 2)
    shortest = x.T @ torch.linalg.solve(x @ x.T, y)
    close(descend(lambda p: SGD(p, lr=0.4), x, y, 800)[-1], shortest, atol=1e-10)
    close(descend(lambda p: SGD(p, lr=0.2, momentum=0.9), x, y, 800)[-1], shortest, atol=1e-10)


@equation("eq-marginal-condition", r"X u = c\, y .")
@equation("eq-marginal-four", r"x_i^\top u = y_i + 1 + 1 + y_i\,(3 - 2 y_i) = 4 y_i ,")
@equation(
    "eq-marginal-features",
    r"x_i = \bigl(\, y_i,\; 1,\; 1,\; 0, \dots, 0,\; \underbrace{1, *, *, *, *}_{\text{block } i},\; 0, \dots, 0 \,"
    r"\bigr), \qquad * = \begin{cases} 0 & y_i = +1 \\ 1 & y_i = -1 . \end{cases}",
)
def test_condition() -> None:
    for sizes in SIZES:
        x, y = problem(*sizes)
        u = (x.T @ y).sign()
        close(y + 1 + 1 + y * (3 - 2 * y), 4 * y)
        close(x @ u, 4 * y)


@equation(
    "eq-marginal-gradient",
    r"\nabla f(\ell_t u) = \frac1n X^\top (c\,\ell_t\, y - y) = \frac{c\,\ell_t - 1}{n}\; X^\top y ,",
)
@equation(
    "eq-marginal-sign",
    r"\theta_{\mathrm{adaptive}} = \frac{u}{c} = \frac{\operatorname{sign}(X^\top y)}{c} .",
)
def test_adaptive_methods_stay_on_the_ray() -> None:
    c = 4
    for sizes in SIZES:
        x, y = problem(*sizes)
        u = (x.T @ y).sign()
        for step in (0.0, 0.1, 0.7):
            close(gradient(x, y, step * u), x.T @ (c * step * y - y) / len(y))
            close(gradient(x, y, step * u), (c * step - 1) / len(y) * (x.T @ y))
        for make, decay in ADAPTIVE:
            path = descend(make, x, y, 2000, decay)
            for theta in path[1:30]:
                close(theta, theta[0] * u, atol=1e-9)
            close(path[-1], u / c, atol=1e-6)


@equation(
    "eq-marginal-score",
    r"\frac{y + 1 + 1}{4} = \begin{cases} \tfrac34 & y = +1 \\ \tfrac14 & y = -1 , \end{cases}",
)
@equation(
    "eq-marginal-a",
    r"a_+ = \frac{4 n_- + 5}{D}, \qquad a_- = -\frac{4 n_+ + 1}{D} .",
)
@equation("eq-marginal-sgd", r"s_+ = 1 - a_+ > 0, \qquad s_- = -1 - 5 a_- < 0 ,")
def test_scores_of_new_examples() -> None:
    for positive, negative in SIZES:
        x, y = problem(positive, negative)
        adaptive, shortest = (x.T @ y).sign() / 4, x.T @ torch.linalg.solve(x @ x.T, y)
        d = 8 * positive * negative + 15 * positive + 3 * negative + 5  # D, in the sentence before
        a = {1.0: (4 * negative + 5) / d, -1.0: -(4 * positive + 1) / d}
        close(x.T @ torch.tensor([a[float(label)] for label in y], dtype=torch.float64), shortest)
        score = {1.0: 1 - a[1.0], -1.0: -1 - 5 * a[-1.0]}
        assert score[1.0] > 0 > score[-1.0]
        for label in (1.0, -1.0):
            new = torch.zeros(x.shape[1], dtype=torch.float64)
            new[:3] = torch.tensor([label, 1.0, 1.0], dtype=torch.float64)
            close(new @ adaptive, (label + 1 + 1) / 4)
            close(new @ adaptive, 0.75 if label > 0 else 0.25)
            close(new @ shortest, score[label])


@equation(
    "eq-marginal-epsilon",
    r"\alpha\,\frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} \approx \frac{\alpha}{\varepsilon}\, \hat m_t ,",
)
def test_a_large_epsilon_is_momentum() -> None:
    x, y = problem(4, 2)
    beta, eps, lr = 0.9, 1e8, 1e7
    path = descend(lambda p: Adam(p, lr=lr, eps=eps), x, y, 20)
    theta, m = torch.zeros(x.shape[1], dtype=torch.float64), torch.zeros(x.shape[1], dtype=torch.float64)
    for t in range(1, 21):
        m = beta * m + (1 - beta) * gradient(x, y, theta)
        theta = theta - lr / eps * m / (1 - beta**t)
        close(path[t], theta, rtol=1e-6, atol=1e-9)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
