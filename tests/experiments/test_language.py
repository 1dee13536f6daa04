"""Training a language model: what is predicted, what a model may see, the same course twice, and how it ends."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from experiments import language, models
from experiments.text import Text
from optimizers import SAM, SGD, AdamW, Average, muon_groups


def alternating(rows: int = 4, length: int = 40) -> Text:
    """0, 1, 0, 1, … from either: known from one symbol."""
    row = torch.arange(length) % 2
    train = torch.stack([row, 1 - row] * (rows // 2)).to(torch.uint8)
    return Text("alternating", train, train, 2, "", entropy=0.0, order=1)


def small(seed: int = 0, symbols: int = 2) -> models.GPT:
    return models.gpt(symbols, layers=1, width=8, heads=2, context=6, seed=seed)


def test_the_models_of_the_sheet():
    model = models.gpt(65, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 111_040
    routes = {name: group["direction"] for group in muon_groups(model, lr=0.02) for name, _ in group["params"]}
    assert {name for name, route in routes.items() if route == "muon"} == {
        f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("qkv", "proj", "up", "down")
    }
    (group,) = (g for g in muon_groups(model, lr=0.02) if any("qkv" in name for name, _ in g["params"]))
    assert group["blocks"] == 3


def test_a_model_is_its_seed_and_sees_no_future():
    state = torch.random.get_rng_state()
    model, same, other = small(), small(), small(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.head.weight, other.head.weight)
    text = torch.tensor([[0, 1, 1, 0, 1, 0]])
    changed = text.clone()
    changed[0, 4] = 0
    differ = (model(text) != model(changed)).any(-1)[0]
    assert differ.tolist() == [False] * 4 + [True] * 2


def test_an_untrained_model_knows_nothing_and_a_trained_one_what_is_to_be_known():
    text, model = alternating(), small()
    assert language.evaluate(model, text) == pytest.approx(math.log(2), abs=0.02)
    course = language.train(
        model, AdamW(model.parameters(), 1e-2), text, steps=120, batch_size=8, seed=0, test_at=(60,), progress=False
    )
    assert list(course.test_loss) == [60, 120]
    assert course.test_loss[120] < course.test_loss[60] < 0.3
    assert course.test_loss[120] < 0.01
    assert len(course.train_loss) == 120
    assert not course.diverged


def test_what_a_model_cannot_know_yet_does_not_count():
    """Of a source of order 2, the second symbol is predicted from one alone."""
    model = small()
    windows = torch.randint(2, (5, 7), generator=torch.Generator().manual_seed(0))
    losses = torch.stack(
        [torch.nn.functional.cross_entropy(model(windows[:, :-1])[:, t], windows[:, t + 1]) for t in range(6)]
    )
    assert language._loss(model, windows).item() == pytest.approx(losses.mean().item(), abs=1e-6)
    assert language._loss(model, windows, order=2).item() == pytest.approx(losses[1:].mean().item(), abs=1e-6)


def test_windows_lie_within_rows_and_reach_both_ends():
    rows = torch.arange(30).reshape(3, 10)
    found = language.windows(rows, 7, 500, torch.Generator().manual_seed(0))
    assert torch.equal(found, found[:, :1] + torch.arange(8))
    assert torch.equal(found[:, 0] // 10, found[:, -1] // 10)
    assert sorted(set(found[:, 0].tolist())) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    with pytest.raises(ValueError, match=r"a row of 10 symbols has no window of 10 \+ 1"):
        language.windows(rows, 10, 1, torch.Generator())


def test_the_same_arguments_are_the_same_course():
    state, courses = torch.random.get_rng_state(), []
    for seed in (0, 0, 1):
        model = small()
        courses.append(
            language.train(
                model, AdamW(model.parameters(), 1e-2), alternating(), steps=7, seed=seed, progress=False
            )
        )
    assert courses[0].train_loss == courses[1].train_loss != courses[2].train_loss
    assert courses[0].test_loss == courses[1].test_loss
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_schedule_and_clip_are_torchs():
    """One SGD run against the loop as a user writes it."""
    text, factor = alternating(), lambda t: 1 / (t + 1)
    model, expected = small(), small()
    course = language.train(
        model, SGD(model.parameters(), 0.5), text, steps=5, seed=3, schedule=factor, clip=0.1, progress=False
    )
    optimizer = torch.optim.SGD(expected.parameters(), 0.5)
    scheduler, random = LambdaLR(optimizer, factor), torch.Generator().manual_seed(3)
    for t in range(5):
        windows = language.windows(text.train.long(), 6, 16, random)
        optimizer.zero_grad()
        logits = expected(windows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        assert float(torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.1)) > 0.1
        optimizer.step()
        scheduler.step()
        assert course.train_loss[t] == pytest.approx(loss.item(), abs=1e-6)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_it_is_tested_at_the_optimizers_point_and_goes_on_from_its_own():
    model, plain = small(), small()
    averaged = AdamW(model.parameters(), 1e-2, extensions=[Average(decay=None)])
    courses = [
        language.train(m, o, alternating(), steps=9, seed=0, test_at=(4,), progress=False)
        for m, o in ((model, averaged), (plain, AdamW(plain.parameters(), 1e-2)))
    ]
    assert courses[0].train_loss == courses[1].train_loss
    assert courses[0].test_loss[4] != courses[1].test_loss[4]
    with averaged.averaged():
        assert courses[0].test_loss[9] == language.evaluate(model, alternating())


def test_sam_is_given_its_second_gradient():
    model, plain = small(), small()
    courses = [
        language.train(m, o, alternating(), steps=5, seed=0, closure=closure, progress=False)
        for m, o, closure in (
            (model, SGD(model.parameters(), 0.1, extensions=[SAM(0.5)]), True),
            (plain, SGD(plain.parameters(), 0.1), False),
        )
    ]
    assert courses[0].train_loss[0] == courses[1].train_loss[0]
    assert courses[0].train_loss[1] != courses[1].train_loss[1]


def test_a_run_that_diverges_ends_with_its_first_loss_that_is_not_finite():
    model, seen = small(), []
    course = language.train(
        model,
        SGD(model.parameters(), 1e30),
        alternating(),
        steps=60,
        seed=0,
        clip=None,
        test_at=(50,),
        progress=lambda step, loss: seen.append(step),
    )
    assert course.diverged
    assert not math.isfinite(course.train_loss[-1])
    assert all(map(math.isfinite, course.train_loss[:-1]))
    assert course.test_loss == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"test_at": (3,)}, "3 is not one of 2 steps"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        language.train(model, SGD(model.parameters(), 0.1), alternating(), **{"steps": 2, "seed": 0, **wrong})
