"""The role {value}: a number of the prose that is read from a record, never typed.

    {value}`adam:first_step.worst_deviation`            the number, mean over the seeds
    {value}`adam:first_step.worst_deviation|.1e`        in a format of Python's
    {value}`adam:mnist.mlp.accuracy|interval.2%`        mean and 95 % interval
    {value}`convex_like:rules.Adam.final|median.0e`     the median over the seeds
    {value}`momentum:mnist.log_ratio|percent`           `32 % less (20 to 43)`, of the logarithm of a ratio;
                                                        `percent log2` and `percent ratio` of what is one of these
    {value}`adam:@parameters.seeds|len`                 anything else in the record: how many, or itself
    {value}`adam/quick:first_step.worst_deviation`      from a scale of your choice

Without a record it says so. A page remembers which records it read; it is read again when one of them changes.
"""

import functools
import hashlib
import re
import statistics
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from experiments import records
from experiments.errors import UserError
from experiments.intervals import in_percent, interval
from experiments.records import SCALES, Record

logger = logging.getLogger(__name__)
EVERY = "*"  # stands for every paper: the scoreboard reads them all
USED = "papers"  # where a page's metadata keep their states


def record_of(paper: str) -> Record | None:
    """The published record of `slug` (the largest scale), or of `slug/scale`; None if there is none."""
    slug, _, scale = paper.partition("/")
    if not scale:
        return records.published(slug)
    path = records.published_path(slug, scale)
    return records.read(path) if path.exists() else None


def find(record: Record, key: str) -> Any:
    """A metric by its dotted key, or with "@" in front any other part of the record."""
    if not key.startswith("@"):
        return record.get(key)
    place: Any = record.content()
    for part in key[1:].split("."):
        if not isinstance(place, dict) or part not in place:
            raise UserError(f"{record.name} has no {key[1:]!r}")
        place = place[part]
    return place


def format_value(value: Any, form: str = "") -> str:
    """A value as text: of a list the mean, `median<format>` its median, `interval<format>` mean and interval.

    `percent` says a ratio's logarithm in percent (`percent log2`, `percent ratio`: of other units).
    """
    if form == "len":
        return str(len(value))
    if form.split()[:1] == ["percent"]:
        return in_percent(value, *form.split()[1:])
    if isinstance(value, str | bool) or (isinstance(value, list) and not _numbers(value)):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if form.startswith("median") and isinstance(value, list) and None not in value:
        value, form = statistics.median(value), form.removeprefix("median")
    whole = isinstance(value, int) and not form  # a count is printed in full
    mean, low, high = interval(value)
    if mean is None or low is None or high is None:
        return "not finite"
    if whole:
        return f"{value:,}"
    style = form.removeprefix("interval") or ".3g"
    text = format(mean, style)
    return f"{text} ({format(low, style)} to {format(high, style)})" if form.startswith("interval") else text


def _numbers(values: list[Any]) -> bool:
    return all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )


def typeset(text: str) -> list[nodes.Node]:
    """A number as a book prints it: 1.2e-07 becomes 1.2 × 10⁻⁷, 1e-06 becomes 10⁻⁶, and a hyphen a minus sign."""
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)
    result: list[nodes.Node] = []
    position = 0
    for match in re.finditer(r"(?P<digits>\d+(?:\.\d+)?)e(?P<exponent>[+-]?\d+)\b", text):
        exponent = str(int(match["exponent"])).replace("-", "−")
        before, digits = text[position : match.start()], match["digits"]
        power = "10" if digits == "1" else f"{digits}\u202f×\u202f10"
        result.append(nodes.Text(before + power))
        result.append(nodes.superscript(exponent, exponent))
        position = match.end()
    result.append(nodes.Text(text[position:]))
    return [node for node in result if node.astext()]


class ValueRole(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        target, _, form = self.text.partition("|")
        paper, colon, key = target.strip().partition(":")
        slug = paper.partition("/")[0]
        note(self.env, [slug])
        try:
            if not colon or not key:
                raise UserError("write it as slug:metric or slug:metric|format")
            record = record_of(paper)
            if record is None:
                return [nodes.inline("", "(no result yet)", classes=["no-result"])], []
            text = format_value(find(record, key.strip()), form.strip())
        except (UserError, ValueError, TypeError, OverflowError) as error:
            # A warning, which the build turns into a failure: no page may show a number that is not there.
            logger.warning("value `%s`: %s", self.text, error, location=self.get_location())
            return [nodes.problematic(self.rawtext, self.rawtext)], []
        return [nodes.inline("", "", *typeset(text), classes=["value"])], []


def note(env: BuildEnvironment, papers: Iterable[str]) -> None:
    """Remember that the page being read depends on the records and claims of these papers.

    Sphinx forgets a page's metadata when it is read again, and gathers them from the processes that read pages.
    """
    known = env.metadata[env.docname].setdefault(USED, {})
    known |= {paper: state(paper) for paper in papers if paper not in known}


def state(paper: str) -> str:
    """A hash of everything that is known about a paper; it changes when a record appears, too."""
    root = records.ROOT
    patterns = [f"results/{scale}/{paper}.json" for scale in SCALES] + [f"book/claims/{paper}.yaml"]
    whole = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        whole.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def outdated(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """The pages whose records or claims are not what they were when the page was read."""
    now = functools.cache(state)
    pages = {page: metadata.get(USED, {}) for page, metadata in env.metadata.items()}
    return [page for page, known in pages.items() if any(now(paper) != was for paper, was in known.items())]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("value", ValueRole())
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 2}
