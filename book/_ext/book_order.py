"""A citation on a page that has no list of references leads to the same list, in whatever order pages are read.

sphinxcontrib.bibtex takes the last list that it read. Which one that is must depend neither on which of the
processes that read pages ends first, nor on which page was edited last.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def sort(app: Sphinx, env: BuildEnvironment) -> None:
    lists = env.domaindata["cite"]["bibliographies"]
    env.domaindata["cite"]["bibliographies"] = dict(sorted(lists.items()))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-updated", sort, priority=400)  # before the domain looks at them
    return {"parallel_read_safe": True, "parallel_write_safe": True}
