"""The code hash: it moves when a number could, and only then."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import code_hash

PROJECT = {
    "optimizers/__init__.py": """\
        "Doc."
        from .adam import Adam
        from optimizers.sgd import SGD as SGD
        __all__ = ["Adam", "SGD"]
        """,
    "optimizers/adam.py": """\
        "Doc."
        # comment
        from optimizers import chain
        from .chain import step
        EPS = 1e-8
        class Adam:
            "Of the class."
        """,
    "optimizers/sgd.py": """\
        from .chain import step
        class SGD:
            def __init__(self):
                'Doc.'
                self.lr = 0.1
        """,
    "optimizers/chain.py": """\
        import math
        def step(x: float) -> float:
            return x * 1
        """,
    "experiments/__init__.py": "",
    "experiments/data.py": "N = 1",
    "experiments/models.py": """\
        def mlp():
            from experiments import data
            return data.N
        """,
    "experiments/records.py": "FORMAT = 1",
    "notebooks/adam.py": """\
        # %%
        from optimizers import Adam
        from experiments import models, records
        """,
    "notebooks/sgd.py": "from optimizers import SGD",
    "notebooks/data.py": "import experiments.data as d",
}
NOTEBOOKS = {"adam", "sgd", "data"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


@pytest.fixture
def changed(project: Path) -> Callable[[str, str, str], set[str]]:
    """Replace text in a file of the project; the notebooks whose hash that changes."""

    def hashes() -> dict[str, str]:
        return {name: code_hash.of_notebook(project / "notebooks" / f"{name}.py", project) for name in NOTEBOOKS}

    def edit(name: str, old: str, new: str) -> set[str]:
        before, text = hashes(), (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new, 1))
        code_hash._parse.cache_clear()  # two edits can fall into one tick of the clock
        after = hashes()
        return {name for name in NOTEBOOKS if before[name] != after[name]}

    return edit


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("optimizers/adam.py", "# comment", "# another comment"),
        ("optimizers/adam.py", '"Doc."', '"Another."'),
        ("optimizers/adam.py", '"Of the class."', '"Another."'),
        ("optimizers/sgd.py", "'Doc.'", "'Another.'"),
        ("optimizers/sgd.py", "self.lr = 0.1", "self.lr = (\n            0.1\n        )  # layout"),
        ("notebooks/adam.py", "# %%", "# %% [markdown]\n# Prose.\n\n# %%"),
        ("optimizers/__init__.py", '"Doc."', '"Another."'),
        ("optimizers/__init__.py", '"Adam", ', '"Adam", "New", '),
        ("experiments/records.py", "FORMAT = 1", "FORMAT = 2"),  # writes down what was measured
    ],
)
def test_what_changes_no_number_changes_no_hash(
    changed: Callable[[str, str, str], set[str]], name: str, old: str, new: str
) -> None:
    assert changed(name, old, new) == set()


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("optimizers/adam.py", "1e-8", "1e-7", {"adam"}),
        ("optimizers/sgd.py", "0.1", "0.2", {"sgd"}),
        ("optimizers/chain.py", "x * 1", "x * 2", {"adam", "sgd"}),
        ("optimizers/chain.py", "x * 1", "x / 1", {"adam", "sgd"}),
        ("experiments/data.py", "N = 1", "N = None", {"adam", "data"}),  # reached through an import in a function
        ("experiments/models.py", "return data.N", "return", {"adam"}),
        ("notebooks/sgd.py", "import SGD", "import SGD\nlr = 1", {"sgd"}),
        ("optimizers/__init__.py", "from .adam import Adam", "from .sgd import SGD as Adam", {"adam"}),
    ],
)
def test_a_change_reaches_exactly_what_uses_it(
    changed: Callable[[str, str, str], set[str]], name: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed(name, old, new) == expected


def test_modules_follow_only_what_is_imported(project: Path) -> None:
    def used(source: str) -> list[str]:
        return list(code_hash.modules(code_hash.ast.parse(source), project))

    assert used("from optimizers import Adam") == ["optimizers.adam", "optimizers.chain"]
    assert used("from experiments import models") == ["experiments.data", "experiments.models"]
    assert used("import optimizers") == [f"optimizers{name}" for name in ("", ".adam", ".chain", ".sgd")]
    assert used("from optimizers import *") == used("import optimizers")
    assert used("import torch, numpy.linalg") == []


def test_none_and_nothing_are_different(tmp_path: Path) -> None:
    sources = ["x = None", "x = 'None'", "x = []", "x = [[]]", "x = ()", "x = 1", "x = True", "x = 1.0", "x = {}"]
    sources += ["return_ = f(1)", "return_ = f(a=1)", "x: int", "x: int = None", "x[1:]", "x[:1]"]
    assert len({code_hash.of_source(source, tmp_path) for source in sources}) == len(sources)


def test_the_hash_is_pinned(tmp_path: Path) -> None:
    """Another hash of the same code, under another Python too, would put every published record out of date."""
    source = "def f(x, /, *, y=None, **z) -> None:\n    return f'{x!r:>{y}} a' 'b'\n"
    assert code_hash.of_source(source, tmp_path) == "047bf599b4463d0a"
