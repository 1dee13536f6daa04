"""A hash of the code that a notebook uses: what has to change before its record is out of date.

It covers the notebook and, transitively, the project's modules that it imports. Comments, layout and docstrings do
not count. `from optimizers import Adam` follows only the module that `optimizers/__init__.py` takes `Adam` from, so
a change of one optimizer leaves the records of the others alone. In a notebook, what `{"quick": …, …}[scale]` holds
for other scales does not count either: other settings at quick scale leave the standard records alone.
"""

import ast
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

from experiments.errors import UserError

# These write down what was measured and change no number of it.
BOOKKEEPING = frozenset({f"experiments.{name}" for name in ("records", "provenance", "code_hash", "errors")})
SCALES = ("quick", "standard", "paper")  # in rising order
Loop = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp  # which has names of its own


def of_notebook(path: Path, root: Path, scale: str) -> str:
    """The hash of what a notebook (or script) at a scale is made of, and of the modules below `root` that it uses.

    16 hexadecimal digits. Raises UserError where one of these files is not Python.
    """
    return _of_tree(_at_scale(path, path.stat().st_mtime_ns, scale), root, _package(path, root))


def files_of_notebook(path: Path, root: Path) -> list[Path]:
    """The files that `of_notebook` reads."""
    return [path, *modules(_parse(path, path.stat().st_mtime_ns), root, _package(path, root)).values()]


def of_source(source: str, root: Path) -> str:
    """The same for Python source at hand, such as the cells of a chapter, one after the other; all of it counts."""
    return _of_tree(ast.parse(source), root)


def same_notebook(one: Path, other: Path, scale: str) -> bool:
    """Whether two notebooks are the same code at a scale, whatever the modules are that they use."""
    trees = [_at_scale(path, path.stat().st_mtime_ns, scale) for path in (one, other)]
    return _canonical(trees[0]) == _canonical(trees[1])


def _of_tree(tree: ast.Module, root: Path, package: str = "") -> str:
    parts = [_canonical(tree)]
    parts += [
        f"{name}\n{_canonical_file(path, path.stat().st_mtime_ns)}"
        for name, path in modules(tree, root, package).items()
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def modules(tree: ast.AST, root: Path, package: str = "") -> dict[str, Path]:
    """The project's modules that `tree`, in a package, uses, transitively: dotted name -> file, sorted by name."""
    _file.cache_clear()  # while it follows the imports, no file comes or goes
    found: dict[str, Path] = {}
    waiting = sorted(set(_imports(tree, package, root)))
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if name in found or name in BOOKKEEPING or path is None:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(_parse(path, path.stat().st_mtime_ns), package, root)
    return dict(sorted(found.items()))


def _imports(tree: ast.AST, package: str, root: Path) -> Iterator[str]:
    """The modules that the imports in `tree` lead to, each re-exported name traced to where it is defined."""
    for node in _import_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = _absolute(node, package)
            for alias in node.names:
                yield _defining_module(base, alias.name, root)


def _defining_module(base: str, name: str, root: Path) -> str:
    """The module in which `from base import name` ends: a submodule, a re-export's source, or `base` itself."""
    if _file(f"{base}.{name}", root):
        return f"{base}.{name}"
    path = _file(base, root)
    if path is not None and path.name == "__init__.py":
        found = _exports(path, path.stat().st_mtime_ns).get(name)
        if found is not None:
            return _defining_module(_absolute(found[0], base), found[1], root)
    return base


@functools.lru_cache(maxsize=256)
def _exports(path: Path, mtime_ns: int) -> dict[str, tuple[ast.ImportFrom, str]]:
    """By the names that a file takes from others: where, and what they are called there."""
    found: dict[str, tuple[ast.ImportFrom, str]] = {}
    for node in _import_nodes(_parse(path, mtime_ns)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, (node, alias.name))
    return found


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _package(path: Path, root: Path) -> str:
    """What the relative imports in a file are relative to."""
    return ".".join(path.parent.relative_to(root).parts)


@functools.cache
def _file(name: str, root: Path) -> Path | None:
    # As text: a Path takes longer to make than the system to answer, and this is asked for every import.
    stem = os.path.join(root, *name.split("."))
    found = next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if name and os.path.isfile(path)), None)
    return Path(found) if found else None


# The book asks for two dozen notebooks in a row, most of which use the same files.
@functools.lru_cache(maxsize=256)
def _parse(path: Path, mtime_ns: int) -> ast.Module:
    return _read(path)


def _read(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise UserError(f"{path}, line {error.lineno}, is not Python: {error.msg}: {line}") from error
    except ValueError as error:  # no text in UTF-8, or a null byte in it
        raise UserError(f"{path} is not a Python file: {error}") from error


@functools.lru_cache(maxsize=256)
def _canonical_file(path: Path, mtime_ns: int) -> str:
    return _canonical(_parse(path, mtime_ns))


@functools.lru_cache(maxsize=256)
def _import_nodes(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    found: list[ast.Import | ast.ImportFrom] = []
    waiting = [tree]
    for node in waiting:  # statements only, from the outside to the inside: most of a tree are expressions
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        else:
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                waiting += getattr(node, part, ())
    return found


def _canonical(node: object) -> str:
    """The syntax tree as text, without docstrings, and the same under every version of Python.

    `ast.dump` will not do: which empty fields it prints depends on the version.
    """
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                value = _without_docstring(value)
            if (
                name not in ("ctx", "kind", "type_comment")
                and value != []
                and not (value is None and name != "value")
            ):
                fields.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return repr(node)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


@functools.lru_cache(maxsize=256)
def _at_scale(path: Path, mtime_ns: int, scale: str) -> ast.Module:
    """The syntax tree of a notebook without what only other scales use; where that is in doubt, with all of it."""
    tree = _read(path)
    nodes = list(ast.walk(tree))
    loops = [node for node in nodes if isinstance(node, Loop)]
    hidden = {id(node) for loop in loops if _is_target("scale", loop) for node in ast.walk(loop)}
    nodes = [node for node in nodes if id(node) not in hidden]
    bound = Counter(name for node in nodes for name in _bound_by(node))
    if bound["scale"] != 1:  # by the parameters, and by something else
        return tree
    read: list[ast.expr | None] = [
        node.value
        for node in nodes
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.slice, ast.Name)
        and node.slice.id == "scale"
    ]
    # A table with a name counts if nothing else is done with it: it occurs where it is made, and where it is read.
    occurs = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    uses = Counter(value.id for value in read if isinstance(value, ast.Name))
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ) if uses[name] and bound[name] == 1 and occurs[name] == 1 + uses[name]:
                read.append(value)
    for table in read:
        if isinstance(table, ast.Dict):
            _choose(table, scale, bound)
    return tree


def _choose(table: ast.Dict, scale: str, bound: Container[str]) -> None:
    """Take the entries of other scales out of a table, in place, but for those whose making does something."""
    keys = [key.value if isinstance(key, ast.Constant) else None for key in table.keys]
    if scale not in keys or not set(keys) <= set(SCALES):
        return
    kept = [
        (key, value)
        for key, value, name in zip(table.keys, table.values, keys, strict=True)
        if name == scale or not all(_is_inert(node, bound) for node in ast.walk(value))
    ]
    table.keys, table.values = [key for key, _ in kept], [value for _, value in kept]


def _is_inert(node: ast.AST, bound: Container[str]) -> bool:
    """Whether to evaluate an expression of this kind changes nothing, such as the state of a random generator."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in ("dict", "list", "range", "tuple") and name not in bound
    return not isinstance(node, ast.Call | ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr)


def _is_target(name: str, loop: Loop) -> bool:
    targets = (node for part in loop.generators for node in ast.walk(part.target))
    return any(isinstance(node, ast.Name) and node.id == name for node in targets)


def _bound_by(node: ast.AST) -> Iterator[str]:
    """The names that a node of a syntax tree binds or deletes, without those of its children."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            yield name
        case ast.alias(name=name, asname=alias):
            yield alias or name.partition(".")[0]
        case (
            ast.FunctionDef(name=str(name))
            | ast.AsyncFunctionDef(name=str(name))
            | ast.ClassDef(name=str(name))
            | ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
        ):
            yield name
