"""Every displayed equation of the chapter on learning-rate dropout, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with the package fails. Means over masks are taken over all of them, where there
are few, and else over so many that five standard deviations of the mean are a small bound.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.problems import Quadratic
from optimizers import SGD, Adam, Chain, GradientDropout, LearningRateDropout
from optimizers.engine.random import uniform

from .equations import Chapter

CHAPTER = Chapter("regularization/lr_dropout")
equation = CHAPTER.equation
ALPHA, MU, P = 0.03, 0.9, 0.6


def mask(keep: float, step: int, shape: tuple[int, ...], stream: int) -> Tensor:
    """The package's own numbers, compared with p: 3 is the stream of steps, 2 that of gradients."""
    coordinate = torch.arange(math.prod(shape)).view(shape)
    return (uniform(0, 0, float(step), coordinate, stream) < keep).double()


def gradients(steps: int, n: int) -> Tensor:
    return torch.randn(steps, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def path(make: Callable[[list[Tensor]], Chain], g: Tensor) -> Tensor:
    """θ_0 = 0, …, θ_T on the gradients g, shape (T + 1, n)."""
    theta = torch.zeros(g.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    points = [theta.detach().clone()]
    for gradient in g:
        theta.grad = gradient.clone()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def all_masks(n: int, p: float) -> tuple[Tensor, Tensor]:
    """The 2ⁿ masks, and their probabilities."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)
    return masks, (p**masks * (1 - p) ** (1 - masks)).prod(1)


def quadratic(seed: int, n: int = 7) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """f, H and θ of a random convex quadratic."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, dtype=torch.float64, generator=generator)
    h, theta = root @ root.T, torch.randn(n, dtype=torch.float64, generator=generator)
    return lambda x: 0.5 * torch.einsum("...i,ij,...j->...", x, h, x), h, theta


@equation(
    "eq-lr-dropout",
    r"\theta_t = \theta_{t-1} - \alpha_t\, \xi_t \odot d_t, \qquad \xi_{t,i} \sim \mathrm{Bernoulli}(p) .",
)
@pytest.mark.parametrize("rule", [SGD, Adam])
def test_rule(rule: type) -> None:
    options = {"momentum": MU, "nesterov": True} if rule is SGD else {}
    g = gradients(12, 40)
    whole = path(lambda p: rule(p, lr=ALPHA, **options), g)
    dropped = path(lambda p: rule(p, lr=ALPHA, extensions=[LearningRateDropout(P)], **options), g)
    # The averages have seen the whole gradient: each step is that of the rule itself, or none.
    for t in range(1, 13):
        step = mask(P, t, (40,), stream=3) * (whole[t] - whole[t - 1])
        torch.testing.assert_close(dropped[t] - dropped[t - 1], step, rtol=1e-9, atol=1e-12)


@equation("eq-lr-dropout-gradient", r"g_t \leftarrow \xi_t \odot g_t .")
@pytest.mark.parametrize("rule", [SGD, Adam])
def test_gradient_dropout(rule: type) -> None:
    g = gradients(12, 40)
    masked = torch.stack([mask(P, t, (40,), stream=2) for t in range(1, 13)]) * g
    ours = path(lambda p: rule(p, lr=ALPHA, extensions=[GradientDropout(P)]), g)
    torch.testing.assert_close(ours, path(lambda p: rule(p, lr=ALPHA), masked), rtol=1e-12, atol=1e-15)


@equation(
    "eq-lr-dropout-moments",
    r"\mathbb{E}[\Delta_t] = -\alpha_t\, p\, d_t, \qquad"
    r" \operatorname{Cov}[\Delta_t] = \alpha_t^2\, p\,(1-p)\, \operatorname{diag}(d_t^2) .",
)
def test_moments() -> None:
    n = 5
    d = torch.linspace(-2, 1, n, dtype=torch.float64)
    masks, chance = all_masks(n, P)
    steps = -ALPHA * masks * d
    mean = (chance[:, None] * steps).sum(0)
    torch.testing.assert_close(mean, -ALPHA * P * d)
    covariance = torch.einsum("m,mi,mj->ij", chance, steps - mean, steps - mean)
    torch.testing.assert_close(covariance, ALPHA**2 * P * (1 - P) * torch.diag(d**2))
    # The package's masks have this mean and this covariance.
    count = 200_000
    theta = torch.zeros(count, n, dtype=torch.float64, requires_grad=True)
    theta.grad = d.expand(count, n).clone()
    SGD([theta], lr=ALPHA, extensions=[LearningRateDropout(P)]).step()
    assert ((theta.detach().mean(0) - mean).abs() < 5 * covariance.diagonal().sqrt() / math.sqrt(count)).all()
    bound = 5 * torch.outer(covariance.diagonal(), covariance.diagonal()).sqrt() / math.sqrt(count)
    assert ((theta.detach().T.cov() - covariance).abs() < bound).all()


@equation("eq-lr-dropout-momentum", r"\mathbb{E}[b_t] \to \frac{p\, g}{1-\mu} ,")
@equation(
    "eq-lr-dropout-adam",
    r"\mathbb{E}\!\left[\frac{\hat m_t}{\sqrt{\hat v_t}}\right] \to \frac{p\, g}{\sqrt{p\, g^2}} ="
    r" \sqrt p\; \operatorname{sign}(g) .",
)
def test_constant_gradient() -> None:
    g, count = -3.0, 2000
    for keep in (0.5, 0.9):
        theta = [torch.zeros(count, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        momentum = SGD(theta[:1], lr=1.0, momentum=MU, extensions=[GradientDropout(keep)])
        adam = Adam(theta[1:], lr=1.0, betas=(0.9, 0.99), eps=1e-16, extensions=[GradientDropout(keep)])
        steps = []
        for t in range(600):
            before = [p.detach().clone() for p in theta]
            for p, optimizer in zip(theta, (momentum, adam), strict=True):
                p.grad = torch.full_like(p, g)
                optimizer.step()
            if t >= 300:
                steps.append([(b - p.detach()).mean() for p, b in zip(theta, before, strict=True)])
        buffer, ratio = torch.tensor(steps).mean(0).tolist()
        assert buffer == pytest.approx(keep * g / (1 - MU), rel=0.005)
        # β₂ is 0.99 here, which leaves v̂ a little of its variance.
        assert ratio == pytest.approx(math.sqrt(keep) * math.copysign(1, g), rel=0.01)


@equation(
    "eq-lr-dropout-jensen",
    r"\mathbb{E}\, f(\theta - \alpha\, \xi \odot d) \;\ge\; f(\theta - p\, \alpha\, d) .",
)
def test_dropout_is_not_faster_where_the_loss_is_convex() -> None:
    masks, chance = all_masks(7, P)
    generator = torch.Generator().manual_seed(3)
    a, theta, d = (torch.randn(7, dtype=torch.float64, generator=generator) for _ in range(3))

    def convex(x: Tensor) -> Tensor:  # and not quadratic
        return torch.nn.functional.softplus(x @ a) + (x**4).sum(-1) + (x @ d).exp()

    for alpha in (0.01, 0.3, 2.0):
        mean = (chance * convex(theta - alpha * masks * d)).sum()
        assert mean > convex(theta - P * alpha * d)


@equation(
    "eq-lr-dropout-gap",
    r"\mathbb{E}\, f(\theta - \alpha\, \xi \odot d) - f(\theta - p\,\alpha\, d) ="
    r" \frac{\alpha^2\, p\,(1-p)}{2} \sum_i H_{ii}\, d_i^2 .",
)
def test_gap_on_a_quadratic() -> None:
    masks, chance = all_masks(7, P)
    for seed in range(3):
        f, h, theta = quadratic(seed)
        d = h @ theta
        gap = (chance * f(theta - ALPHA * masks * d)).sum() - f(theta - P * ALPHA * d)
        torch.testing.assert_close(gap, ALPHA**2 * P * (1 - P) / 2 * (h.diagonal() * d**2).sum(), rtol=1e-9, atol=0)
    # The example of the second exercise: a matrix of ones, α = 2/n, p = ½.
    n = 7
    masks, chance = all_masks(n, 0.5)
    ones = torch.ones(n, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return 0.5 * x.sum(-1) ** 2

    after = [loss(ones - 2 / n * n * ones), (chance * loss(ones - 2 / n * n * masks)).sum(), loss(ones - ones)]
    assert [float(value) for value in after] == pytest.approx([n**2 / 2, n / 2, 0])


@equation(
    "eq-lr-dropout-bowl",
    r"\mathbb{E}[\theta_t^2] = \bigl(1 - p + p\,(1-\alpha h)^2\bigr)\, \mathbb{E}[\theta_{t-1}^2] ,",
)
def test_bowl() -> None:
    bowl, count, alpha, steps = Quadratic(), 100_000, 0.08, 6
    theta = bowl.initial().repeat(count, 1).requires_grad_()
    optimizer = SGD([theta], lr=alpha, extensions=[LearningRateDropout(P)])
    for _ in range(steps):
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
    square = theta.detach() ** 2
    expected = (1 - P + P * (1 - alpha * bowl.eigenvalues) ** 2) ** steps * bowl.initial() ** 2
    assert ((square.mean(0) - expected).abs() < 5 * square.std(0) / math.sqrt(count)).all()
    # It shrinks as long as the whole step does.
    for alpha_h in (1.99, 2.01):
        assert (1 - P + P * (1 - alpha_h) ** 2 < 1) == (alpha_h < 2)


@equation(
    "eq-lr-dropout-saddle",
    r"\begin{gathered} \mathbb{E}[w_t^2] = (1 + 2\alpha p + c_1)\, \mathbb{E}[w_{t-1}^2] +"
    r" c_2\, \mathbb{E}[u_{t-1}^2], \\ \mathbb{E}[u_t^2] = (1 - 2\alpha p + c_1)\, \mathbb{E}[u_{t-1}^2] +"
    r" c_2\, \mathbb{E}[w_{t-1}^2], \\ c_1 = \tfrac12 \alpha^2 p\,(1+p), \qquad"
    r" c_2 = \tfrac12 \alpha^2 p\,(1-p) . \end{gathered}",
)
def test_saddle_between_the_axes() -> None:
    masks, chance = all_masks(2, P)
    c1, c2 = ALPHA**2 * P * (1 + P) / 2, ALPHA**2 * P * (1 - P) / 2
    for x, y in ((1.0, 1.0), (0.3, -1.2)):
        after = torch.tensor([x, y], dtype=torch.float64) - ALPHA * masks * torch.tensor(
            [y, x], dtype=torch.float64
        )
        w, u = (x - y) ** 2, (x + y) ** 2
        squares = [(chance * (after[:, 0] + sign * after[:, 1]) ** 2).sum().item() for sign in (-1, 1)]
        assert squares[0] == pytest.approx((1 + 2 * ALPHA * P + c1) * w + c2 * u, rel=1e-12)
        assert squares[1] == pytest.approx((1 - 2 * ALPHA * P + c1) * u + c2 * w, rel=1e-12)
    # The first exercise: its approximation beside the recursion, at α = 0.05.
    for p, steps in ((0.5, 88), (0.9, 67)):
        w, u, alpha = 0.0, 4.0, 0.05
        for _ in range(steps):
            c1, c2 = alpha**2 * p * (1 + p) / 2, alpha**2 * p * (1 - p) / 2
            w, u = (1 + 2 * alpha * p + c1) * w + c2 * u, (1 - 2 * alpha * p + c1) * u + c2 * w
        assert steps == round(math.log(2 / (alpha * (1 - p))) / (2 * alpha * p))
        assert w == pytest.approx(1, rel=0.15)


@equation("eq-lr-dropout-axis", r"y_t = (1 + 2\alpha\,\xi_t)\, y_{t-1} = 0")
def test_saddle_along_an_axis() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([z], lr=ALPHA, extensions=[LearningRateDropout(P)])
    y = 1e-3
    for t in range(1, 200):
        z.grad = z.detach() * torch.tensor([2.0, -2.0], dtype=torch.float64)
        optimizer.step()
        y *= 1 + 2 * ALPHA * mask(P, t, (2, 2), stream=3)[1, 1].item()
    assert z[0, 1] == 0
    assert z[1, 1].item() == pytest.approx(y, rel=1e-9)
    assert y > 1


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
