"""`python -m benchmarks.equality`: what needs none of the libraries that it runs."""

import math

import numpy as np

from benchmarks import candidates, equality
from experiments import records


def test_a_missing_library_is_one_line_and_writes_nothing(monkeypatch, tmp_path, capsys) -> None:
    def absent(name: str) -> None:
        raise candidates.Skip(f"No module named {name!r}")

    monkeypatch.setattr(candidates, "library", absent)
    out = tmp_path / "equality.json"
    assert equality.main(["--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "'optax'" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_run_writes_every_distance_with_the_versions(monkeypatch, tmp_path) -> None:
    # Only torch, which is here; as if the rows named no other library.
    row = {
        "ours": "Adam(eps=1e-3)",
        "theirs": "torch",
        "equals": "1e-12",
        "libraries": ["torch.optim.Adam(params, lr, eps=1e-3)"],
    }
    other = {**row, "libraries": ["torch.optim.SGD(params, lr)"], "schedule": False}
    monkeypatch.setattr(equality, "comparisons", lambda: [row, other])
    monkeypatch.setattr(candidates, "library", lambda name: __import__(name))
    record = records.read(equality.run(tmp_path / "equality.json"))
    assert record.get("torch.Adam_eps_1e_3_optim_Adam_params_lr_eps_1e_3") < 1e-12
    assert record.get("torch.Adam_eps_1e_3_optim_SGD_params_lr_constant_rate") > 0.1
    assert record.parameters["libraries"] == ["torch"]
    assert record.provenance["packages"]["torch"]


def test_a_distance_is_infinite_where_one_side_is_not_finite() -> None:
    points = np.zeros((3, 2))
    broken = points.copy()
    broken[1, 1] = math.nan
    assert equality.distance(points, points + 0.5) == 0.5
    assert equality.distance(points, broken) == math.inf
    assert not equality.holds({"equals": "1e-12"}, math.inf)
