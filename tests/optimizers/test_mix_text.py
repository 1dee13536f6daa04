"""Mixes as they are written on the command line: what they build, and what they say about a mistake."""

import re

import pytest
import torch

import optimizers
from optimizers import Chain, GradientNoise, LearningRateDropout, Lookahead, RAdamW, mixes

MIX = "radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead"


def parameter() -> torch.Tensor:
    return torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()


def path(optimizer: Chain, theta: torch.Tensor, steps: int = 7) -> torch.Tensor:
    for step in range(steps):
        theta.grad = torch.sin(theta.detach() * (step + 1))
        optimizer.step()
    return theta.detach()


def test_the_mix_of_the_reference_builds_what_it_says() -> None:
    (mix,) = mixes.parse(MIX)
    assert mix.text == MIX
    written, by_hand = parameter(), parameter()
    stages = [GradientNoise(seed=3), LearningRateDropout(0.5, seed=3), Lookahead()]
    optimizers.new_run()
    expected = RAdamW([by_hand], lr=1e-3, weight_decay=1e-4, decay="schedule", nesterov=True, extensions=stages)
    assert torch.equal(path(mix.build([written], seed=3), written), path(expected, by_hand))


def test_a_list_keeps_its_order_and_drops_what_is_there_twice() -> None:
    text = "adam, radam(betas=(0.9, 0.99)) , sgd+lookahead(k=3, alpha=0.8), ADAM"
    assert [mix.text for mix in mixes.parse(text)] == [
        "adam",
        "radam(betas=(0.9, 0.99))",
        "sgd+lookahead(k=3, alpha=0.8)",
    ]


@pytest.mark.parametrize("name", list(optimizers.recipes))
def test_every_recipe_is_a_mix_with_its_own_settings(name: str) -> None:
    (mix,) = mixes.parse(name)
    ours, theirs = parameter(), parameter()
    assert torch.equal(path(mix.build([ours]), ours), path(optimizers.recipes[name]([theirs]), theirs))


@pytest.mark.parametrize("name", optimizers.list())
def test_every_optimizer_of_the_package_is_a_mix(name: str) -> None:
    (mix,) = mixes.parse(f"{name}+lookahead")
    assert [type(stage) for stage in mix.build([parameter()])._stages][-1] is Lookahead


def test_an_extension_joins_those_of_the_recipe() -> None:
    (mix,) = mixes.parse("adam_lr_dropout+lookahead")
    assert [type(s) for s in mix.build([parameter()])._stages[-2:]] == [LearningRateDropout, Lookahead]


def test_options_override_and_seeds_reach_every_noise_but_those_written_down() -> None:
    (mix,) = mixes.parse("sgd(0.5, momentum=0.5)+gradient_noise(seed=7)+lr_dropout")
    (group,) = mix.build([parameter()], seed=2).param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.5)
    assert (group["gradient_noise_seed"], group["lr_dropout_seed"]) == (7, 2)
    assert mix.build([parameter()], lr=0.1).param_groups[0]["lr"] == 0.1


def test_only_rules_without_a_norm_over_tensors_can_be_stacked() -> None:
    assert mixes.parse(MIX)[0].elementwise
    assert not mixes.parse("adam+clip_norm(1.0)")[0].elementwise


def test_imports_name_the_classes_of_the_mix_alone() -> None:
    text = mixes.parse("adam+lookahead")[0].imports
    assert "from optimizers.adam import Adam\n" in text
    assert "from optimizers.lookahead import Lookahead" in text
    assert "radam" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("radamm", "there is no optimizer 'radamm'; did you mean 'radam'?"),
        ("adam+lokahead", "there is no extension 'lokahead'; did you mean 'lookahead'?"),
        ("radamw(nestrov=True)", "there is no option of radamw 'nestrov'; did you mean 'nesterov'?"),
        ("adam+lr_dropout(kep=0.5)", "there is no option of lr_dropout 'kep'; did you mean 'keep'?"),
        ("adam(fused=True)", "there is no option of adam 'fused'"),
        ("adam+lr_dropout(2)", "adam+lr_dropout(2): keep must lie in (0, 1], got 2"),
        ("adam+lr_dropout(0.5, 1, 2)", "has 3 values, lr_dropout takes keep, seed"),
        ("adam+lr_dropout(0.5, keep=0.5)", "says keep twice"),
        ("adam_lr_dropout+lr_dropout", "adam_lr_dropout+lr_dropout: "),
        ("adam+", "cannot read the optimizers 'adam+'"),
        ("", "cannot read the optimizers ''"),
        ("adam(lr=open('x'))", "options must be numbers, text, True, False or None"),
        ("adam-sgd", "'adam - sgd' is neither a name nor a name with options"),
        ("adam, 3", "'3' is neither a name"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_is_near(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        mixes.parse(text)
    assert "\n" not in str(caught.value)
