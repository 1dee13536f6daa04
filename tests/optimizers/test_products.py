"""Products that are known to be symmetric: the whole product's values, and exactly symmetric."""

import pytest
import torch

from optimizers.engine import symmetric
from optimizers.engine.products import ROWS

SHAPES = [(3, 5), (2 * ROWS, 7), (2 * ROWS + 1, 40), (3, 2 * ROWS + 90, 12), (4 * ROWS, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_of_it_is_the_whole(shape, dtype):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ x.double().mT
    tolerance = 40 * torch.finfo(dtype).eps * shape[-1] ** 0.5
    gram = symmetric(x, x.mT)
    assert (gram.double() - exact).abs().max() <= tolerance * exact.abs().max()
    added = symmetric(x, x.mT, gram, alpha=0.25, beta=-2.0)
    assert (added.double() - (0.25 * exact - 2 * gram.double())).abs().max() <= tolerance * exact.abs().max()
    for result in (gram, added):
        assert result.dtype == dtype
    if shape[-2] >= 2 * ROWS:
        assert torch.equal(gram, gram.mT)
        assert torch.equal(added, added.mT)


def test_what_is_added_may_be_one_number():
    x = torch.randn(2 * ROWS + 3, 9)
    added = symmetric(x, x.mT, torch.tensor(0.5).expand(len(x), len(x)), alpha=2.0, beta=4.0)
    assert torch.allclose(added, 2 + 2 * (x @ x.mT), rtol=1e-4, atol=1e-4)


def test_autograd_follows_it():
    x = torch.randn(2 * ROWS, 3, dtype=torch.float64, requires_grad=True)
    symmetric(x, x.mT).square().sum().backward()
    assert torch.allclose(x.grad, 4 * (x @ x.mT @ x).detach())


def test_what_is_not_finite_spoils_its_row_and_column_alone():
    x = torch.randn(3 * ROWS, 4)
    x[300] = torch.nan
    gram = symmetric(x, x.mT)
    bad = torch.zeros(len(x), len(x), dtype=torch.bool)
    bad[300], bad[:, 300] = True, True
    assert torch.equal(gram.isnan(), bad)
