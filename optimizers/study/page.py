"""The report as one HTML file: no script, no request; light or dark as the reader's system is."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1b1f24, #e6e9ee); --page: light-dark(#ffffff, #14181e);
  --faint: light-dark(#56606b, #aab4c0); --line: light-dark(#d5dae1, #3a4350);
  --block: light-dark(#f3f5f8, #1d232b);  --link: light-dark(#0068a9, #56b4f5); }
body { margin: 0 auto; padding: 1rem; max-width: 48rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.facts, figcaption { color: var(--faint); font-size: 0.92rem; }
.scroll, .book-figure { overflow-x: auto; } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.book-figure svg { width: 100%; height: auto; display: block; } figure { margin: 1.4rem 0; }
table { border-collapse: collapse; min-width: 100%; }
th, td { text-align: left; padding: 0.35rem 0.9rem 0.35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; overflow-wrap: anywhere; min-width: 6rem; max-width: 18rem; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; background: var(--block); padding: 0.8rem; border-radius: 4px; user-select: all; }
code { font: 0.9rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
ul.warnings li { margin: 0.4rem 0; }
@media print { .scroll, .book-figure, pre { overflow: visible; } pre { white-space: pre-wrap; } }
""".strip()


def render(found: Mapping[str, Any]) -> str:
    """The page for what `analysis.summarize` found, with the ``problem``, ``protocol`` and ``provenance`` in it."""
    rows = [row for row in found["optimizers"] if not row.get("failed")]
    title = f"{found['problem']}: {len(rows)} optimizers compared"
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(in_short(found))}</p>"]
    parts.append(f'<p class="facts">{_text(_how(found))}</p>')
    if found["warnings"]:
        items = "".join(f"<li>{_text(warning)}</li>" for warning in found["warnings"])
        parts.append(f'<h2>What to know first</h2><ul class="warnings">{items}</ul>')
    if rows:
        parts += _sections(found, rows)
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_text(title)}</title>\n<style>\n{STYLE}\n</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def in_short(found: Mapping[str, Any]) -> str:
    """What came out, in two sentences."""
    rows = [row for row in found["optimizers"] if not row.get("failed")]
    if not rows:
        return "No optimizer has a result."
    best = rows[0]
    rate = "" if best["lr"] is None else f" at a learning rate of {best['lr']:g}"
    open_ = [row["name"] for row in found["comparisons"] if not row["decided"]]
    first = (
        f"{best['name']}{rate} has the lowest mean validation loss, {tables.plus_minus(best['loss'], best['low'])}."
    )
    if best["loss"] is None:
        first = "Every optimizer diverged with some of its fresh seeds."
    if len(rows) == 1:
        return first
    if not open_:
        return f"{first} It is told apart from every other."
    return f"{first} Not told apart from it: {', '.join(open_)}."


def _how(found: Mapping[str, Any]) -> str:
    told = [f"{found['steps']:,} steps a run"] if found.get("steps") else []
    protocol = found.get("protocol")
    if protocol:
        told.append(
            f"{protocol['budget']} learning rates with {protocol['seeds']} seeds each, the best again with "
            f"{protocol['fresh_seeds']} fresh seeds, which alone count here"
        )
    return "; ".join([*told, found["provenance"]]) + "."


def _sections(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = ["<h2>Ranking</h2>", table(tables.ranking(found), "Ranking")]
    if len(rows) > 1:
        parts += [
            figure(charts.ranks(rows), "The band is the 95 % bootstrap interval of the rank over the fresh seeds."),
            "<h2>What is decided, and what is not</h2>",
            "<p>Each optimizer beside the best, seed by seed: mean and 95 % interval of the difference. "
            "Where it reaches 0 nothing is decided; the same command with more fresh seeds goes on from here.</p>",
            table(tables.comparisons(found), "Comparisons"),
        ]
    parts.append("<h2>To copy</h2>")
    for row in rows:
        if row["code"]:
            label = f'tabindex="0" role="region" aria-label="Code of {_text(row["name"])}"'
            parts.append(f"<pre {label}><code>{_text(chr(10).join(row['code']))}</code></pre>")
    if any(row["grid"] for row in rows):
        caption = "Mean over the seeds that learning rates were chosen with; the band is their range."
        parts += ["<h2>Learning rates</h2>", figure(charts.sensitivity(rows), caption)]
    parts += [
        "<h2>On the way</h2>",
        figure(
            charts.curves(rows, "step"), "Block means of the training loss; the band is the range of the seeds."
        ),
        figure(charts.curves(rows, "time"), "The same over the time that training took, without validation."),
        "<h2>Time and memory of a step</h2>",
        table(tables.costs(found), "Time and memory"),
    ]
    return parts


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def table(rows: Sequence[Sequence[str]], label: str) -> str:
    """A table that scrolls where a page is narrow; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows[1:]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _text(text: str) -> str:
    return html.escape(text)
