"""What is committed under results/: whole records, of executed notebooks."""

from pathlib import Path

import pytest

from experiments import data, records, run, text

RECORDS = sorted((records.ROOT / "results").glob("*/*.json"))
NOTEBOOKS = sorted((records.ROOT / "results").glob("*/*.ipynb"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", RECORDS, ids=name)
def test_records_are_whole_and_in_their_place(path: Path) -> None:
    record = records.read(path)
    assert (record.scale, record.slug) == (path.parent.name, path.stem)
    assert records.source(record.slug).is_file()
    for dataset, digest in record.provenance["data"].items():
        assert digest == {**data.DIGESTS, **text.DIGESTS}[dataset]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_executed(path: Path) -> None:
    """nbval compares nothing, and says nothing, where a notebook has no outputs."""
    cells = [cell for cell in run.read_notebook(path).cells if cell.cell_type == "code" and cell.source]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs, "a notebook without outputs shows nothing and tests nothing"
    assert not any(output.output_type == "error" for output in outputs)


def test_every_notebook_has_its_record() -> None:
    assert {p.stem for p in RECORDS if p.parent.name == "quick"} == set(run.slugs())


def test_every_quick_record_has_its_notebook() -> None:
    assert {p.stem for p in NOTEBOOKS} == {p.stem for p in RECORDS if p.parent.name == "quick"}
