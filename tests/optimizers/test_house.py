"""Where things are: papers in front, the machine behind, and what was saved before the machine moved there."""

import ast
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import optimizers
from optimizers import Adam, Chain, GradientNoise, Lookahead, Place, Stage
from optimizers.engine import identity

HOUSE = Path(optimizers.__file__).parent
MODULES = sorted(HOUSE.rglob("*.py"))
ENGINE = [path for path in MODULES if HOUSE / "engine" in path.parents]
EXTRA = {"matplotlib", "numpy", "optuna", "scipy", "sqlalchemy", "tqdm"}  # of the study alone
FRONT = [path for path in MODULES if path.parent == HOUSE]


def name(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def imports(path: Path) -> Iterator[str]:
    """The modules that a module imports from, anywhere in it, by their whole names; a statement gives each once."""
    package = ["optimizers", *path.parent.relative_to(HOUSE).parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


# ---------------------------------------------------------------------- who knows whom


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_all_that_is_needed_is_torch(path: Path) -> None:
    packages = {module.partition(".")[0] for module in imports(path)}
    extra = EXTRA if path.parent == HOUSE / "study" else set()
    assert packages <= {"optimizers", "torch", *sys.stdlib_module_names, *extra}


def test_a_problem_can_be_written_without_the_extra() -> None:
    text = (
        f"import sys\nsys.modules.update(dict.fromkeys({sorted(EXTRA)}))\nfrom optimizers.study import Problem, run"
    )
    subprocess.run([sys.executable, "-c", text], check=True)


@pytest.mark.parametrize("path", ENGINE, ids=name)
def test_the_engine_knows_no_paper(path: Path) -> None:
    known = {module for module in imports(path) if module.partition(".")[0] == "optimizers"}
    assert {module for module in known if not module.startswith("optimizers.engine")} == set()


@pytest.mark.parametrize("path", FRONT, ids=name)
def test_a_rule_needs_one_line_of_the_engine(path: Path) -> None:
    lines = [module for module in imports(path) if module.startswith("optimizers.engine")]
    assert lines in ([], ["optimizers.engine"])


def test_both_parts_were_looked_at() -> None:
    assert {"adam.py", "lookahead.py", "registry.py"} <= set(map(name, FRONT))
    assert {"engine/chain.py", "engine/compiled/c.py"} <= set(map(name, ENGINE))


# ---------------------------------------------------------------------- what was saved before


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("chain.Chain", Chain),
        ("identity.Indices", identity.Indices),
        ("identity.Run", identity.Run),
        ("stage.Place", Place),
        ("stage.Stage", Stage),
    ],
)
def test_a_pickle_may_name_the_old_module(old: str, today: type) -> None:
    module, _, what = old.partition(".")
    assert pickle.loads(f"coptimizers.{module}\n{what}\n.".encode()) is today


def steps(optimizer: Chain) -> list[float]:
    (param,) = optimizer.param_groups[0]["params"]
    for _ in range(3):
        param.grad = param.detach().clone()
        optimizer.step()
    numbers: list[float] = param.tolist()
    return numbers


def earlier(optimizer: Chain) -> bytes:
    """The pickle that was written when the engine's modules were beside the rules'."""
    now = pickle.dumps(optimizer, protocol=2)  # in which a name is text that ends with its line
    assert b"coptimizers.engine.identity\nRun\n" in now
    return now.replace(b"coptimizers.engine.", b"coptimizers.")


@pytest.mark.parametrize("bare", [False, True])
def test_an_earlier_pickle_goes_on(bare: bool, tmp_path: Path) -> None:
    param = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    mix = [GradientNoise(0.1), Lookahead(2)]
    optimizer = Chain([param], mix, lr=0.1) if bare else Adam([param], lr=0.1, extensions=mix)
    steps(optimizer)
    (tmp_path / "optimizer.pkl").write_bytes(earlier(optimizer))
    # Also in a process that has not imported the package yet.
    code = f"""
import pickle
optimizer = pickle.load(open("optimizer.pkl", "rb"))
import optimizers
assert type(optimizer) is optimizers.{type(optimizer).__name__}
(param,) = optimizer.param_groups[0]["params"]
for _ in range(3):
    param.grad = param.detach().clone()
    optimizer.step()
print(param.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOUSE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    twin = pickle.loads(earlier(optimizer))
    assert type(twin) is type(optimizer)
    assert ast.literal_eval(done.stdout) == steps(twin) == steps(optimizer)
