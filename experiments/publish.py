"""Move this machine's records into results/, which is committed and is what the book prints."""

from collections.abc import Sequence

from nbformat import NotebookNode

from experiments import claims, records, run
from experiments.errors import UserError


def publish(scale: str, only: Sequence[str] = ()) -> list[str]:
    """Check every record of a scale, then copy them; returns the slugs. At `quick` the executed notebook goes too.

    Raises UserError, and copies nothing, if any record is missing, edited, of older code, or if a claim asks for a
    metric that it lacks.
    """
    if scale != "standard" and (timed := [slug for slug in only if slug in records.COMMANDS]):
        raise UserError(f"{timed[0]} is measured at scale standard: make publish SCALE=standard ONLY={timed[0]}")
    run.check_words(scale, *(slug for slug in only if slug not in records.COMMANDS))
    chosen = list(only) or [slug for slug in run.slugs() if records.local_path(slug, scale).exists()]
    if not chosen:
        raise UserError(f"there is nothing to publish at scale {scale}: run `make reproduce SCALE={scale}` first")
    texts, notebooks = {}, {}
    for slug in chosen:
        texts[slug] = _checked(slug, scale)
        if scale == "quick":
            notebooks[slug] = _notebook(slug)
    for slug in chosen:
        target = records.published_path(slug, scale)
        if slug in notebooks:
            run.write_notebook(notebooks[slug], target.with_suffix(".ipynb"))
        records.write_text(target, texts[slug])
    return chosen


def _checked(slug: str, scale: str) -> str:
    """The record as text, after all checks."""
    command = records.COMMANDS.get(slug)
    again = f"run `{command.line if command else f'make reproduce SCALE={scale} ONLY={slug}'}`"
    path = records.local_path(slug, scale)
    if not path.exists():
        raise UserError(f"{slug} has no record at scale {scale}: {again}")
    data = path.read_bytes()
    record = records.parse(data, path)
    if (record.slug, record.scale) != (slug, scale):
        raise UserError(f"{path} is {record.name}: {again}")
    if not record.is_of(records.code_today(slug, scale)):
        raise UserError(f"{record.name} is not of today's code: {again}")
    if slug in claims.slugs():
        for claim in claims.load(slug):
            claim.verdict(record)  # a ClaimError here is better than one in the book
    return data.decode()


def _notebook(slug: str) -> NotebookNode:
    path = records.local_path(slug, "quick").with_suffix(".ipynb")
    if not path.exists():
        raise UserError(f"{path} is missing: delete the record beside it and run `make reproduce ONLY={slug}`")
    notebook = run.tidy(run.read_notebook(path))
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in notebook.cells if cell.source):
        raise UserError(f"{path} is not executed to its end: run `make reproduce ONLY={slug}` again")
    if str(records.ROOT) in path.read_text(encoding="utf-8"):
        raise UserError(
            f"{path} shows a path of this machine ({records.ROOT}): print relative paths in the notebook"
        )
    return notebook
