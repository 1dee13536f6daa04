"""The code hash: it moves when a number could, and only then."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import code_hash, records

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


def forget() -> None:
    """Two edits of a test can fall into one tick of the clock."""
    code_hash._parse.cache_clear()
    code_hash._canonical_file.cache_clear()
    code_hash._at_scale.cache_clear()


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
        paths = {name: project / "notebooks" / f"{name}.py" for name in NOTEBOOKS}
        return {name: code_hash.of_notebook(path, project, "quick") for name, path in paths.items()}

    def edit(name: str, old: str, new: str) -> set[str]:
        before, text = hashes(), (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new, 1))
        forget()
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


def test_the_relative_imports_of_a_script(project: Path) -> None:
    """A record that a command writes is as much of the modules beside it as of the command."""
    (project / "benchmarks").mkdir()
    (project / "benchmarks/__init__.py").touch()
    (project / "benchmarks/step.py").write_text("from . import shapes\nfrom .rules import RULES\n")
    (project / "benchmarks/shapes.py").write_text("N = 1\n")
    (project / "benchmarks/rules.py").write_text("from optimizers import Adam\nRULES = [Adam]\n")
    script = project / "benchmarks/step.py"
    names = {path.relative_to(project).as_posix() for path in code_hash.files_of_notebook(script, project)}
    beside = {f"benchmarks/{name}.py" for name in ("step", "shapes", "rules")}
    assert names == {*beside, "optimizers/adam.py", "optimizers/chain.py"}
    seen = {code_hash.of_notebook(script, project, "standard")}
    for name in ("benchmarks/shapes.py", "benchmarks/rules.py", "optimizers/adam.py"):
        (project / name).write_text((project / name).read_text() + "M = 2\n")
        forget()
        seen.add(code_hash.of_notebook(script, project, "standard"))
    assert len(seen) == 4


def scales_moved(folder: Path, body: str) -> str:
    """At which scales a notebook's hash depends on the number 1234 in it."""
    path = folder / "notebooks" / "x.py"
    path.parent.mkdir(exist_ok=True)
    found = []
    for text in (body, body.replace("1234", "5678")):
        path.write_text(f'scale = "quick"\n{text}\n')
        forget()
        found.append([code_hash.of_notebook(path, folder, scale) for scale in code_hash.SCALES])
    return " ".join(scale for scale, a, b in zip(code_hash.SCALES, *found, strict=True) if a != b)


TABLE = '{"quick": {"n": 1234}, "standard": {"n": 5}, "paper": {"n": 6}}'


@pytest.mark.parametrize(
    "body",
    [
        f"SETTINGS = {TABLE}[scale]",
        f"SETTINGS = {TABLE}[scale]\nprint(SETTINGS['n'], scale)",
        "n = {'quick': 1234, 'standard': 5, 'paper': 6}[scale]",
        "n = {'paper': 6, 'standard': 5, 'quick': 1234}[scale]",
        "SETTINGS = {'quick': {**{'n': 1234}, 'm': [-1, 2 * 3]}, 'standard': {'n': 5}, 'paper': {}}[scale]",
        "rates = {'quick': [2.0**k for k in range(1234)], 'standard': [], 'paper': list(range(3))}[scale]",
        f"TABLE = {TABLE}\nSETTINGS = TABLE[scale]",
        f"TABLE: dict = {TABLE}\nn = TABLE[scale]['n']\nm = TABLE[scale]['m']",
        f"def settings():\n    return {TABLE}[scale]",
        f"SETTINGS = {TABLE}[scale]\nx = [scale for scale in (1, 2)]",  # a name of the loop's own
    ],
)
def test_what_only_another_scale_uses_does_not_count(tmp_path: Path, body: str) -> None:
    assert scales_moved(tmp_path, body) == "quick"


@pytest.mark.parametrize(
    "body",
    [
        "n = 1234",
        f"SETTINGS = {TABLE}",
        f"SETTINGS = {TABLE}['quick']",
        f"SETTINGS = {TABLE}[other]",
        f"SETTINGS = {TABLE}.get(scale)",
        "n = {'small': 1234, 'quick': 5, 'standard': 5, 'paper': 6}[scale]",
        "n = {'quick': 1234, **more}[scale]",
        f"scale = 'standard'\nSETTINGS = {TABLE}[scale]",
        f"for scale in ('quick', 'paper'):\n    print({TABLE}[scale])",
        f"SETTINGS = [{TABLE}[scale] for scale in ('quick', 'paper')]",
        f"def settings(scale):\n    return {TABLE}[scale]",
        f"settings = lambda scale: {TABLE}[scale]",
        f"import other as scale\nSETTINGS = {TABLE}[scale]",
        f"TABLE = {TABLE}\nSETTINGS = TABLE[scale]\nprint(TABLE['quick'])",
        f"TABLE = {TABLE}\nSETTINGS = TABLE[scale]\nprint(TABLE)",
        f"TABLE = {TABLE}\nTABLE[scale] = 3\nSETTINGS = TABLE[scale]",
        f"TABLE = {TABLE}\nTABLE = change(TABLE)\nSETTINGS = TABLE[scale]",
        # What has an effect has it at every scale, such as on a random generator.
        "x = {'quick': torch.rand(1234), 'standard': 1, 'paper': 2}[scale]",
        "x = {'quick': (y := 1234), 'standard': 1, 'paper': 2}[scale]",
        "def range(n): print(n)\nx = {'quick': range(1234), 'standard': 1, 'paper': 2}[scale]",
    ],
)
def test_what_may_be_used_at_every_scale_counts_at_every_scale(tmp_path: Path, body: str) -> None:
    assert scales_moved(tmp_path, body) == "quick standard paper"


def test_a_scale_without_an_entry(tmp_path: Path) -> None:
    assert scales_moved(tmp_path, "n = {'quick': 1234, 'standard': 5}[scale]") == "quick paper"


@pytest.mark.parametrize("path", sorted((records.ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_has_a_hash_per_scale(path: Path) -> None:
    assert len({code_hash.of_notebook(path, records.ROOT, scale) for scale in code_hash.SCALES}) == 3
