"""A hash of the code that a notebook uses: what has to change before its record is out of date.

It covers the notebook and, transitively, the project's modules that it imports. Comments, layout and docstrings do
not count. `from optimizers import Adam` follows only the module that `optimizers/__init__.py` takes `Adam` from, so
a change of one optimizer leaves the records of the others alone.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError

# These write down what was measured and change no number of it.
BOOKKEEPING = frozenset({"experiments.records", "experiments.code_hash", "experiments.errors"})


def of_notebook(path: Path, root: Path) -> str:
    """The hash of a notebook's own code and of the modules below `root` that it uses; 16 hexadecimal digits.

    Raises UserError where one of these files is not Python.
    """
    return _of_tree(_parse(path, path.stat().st_mtime_ns), root)


def files_of_notebook(path: Path, root: Path) -> list[Path]:
    """The files that `of_notebook` reads."""
    return [path, *modules(_parse(path, path.stat().st_mtime_ns), root).values()]


def of_source(source: str, root: Path) -> str:
    """The same for Python source at hand, such as the cells of a chapter, one after the other."""
    return _of_tree(ast.parse(source), root)


def _of_tree(tree: ast.Module, root: Path) -> str:
    parts = [_canonical(tree)]
    parts += [
        f"{name}\n{_canonical_file(path, path.stat().st_mtime_ns)}" for name, path in modules(tree, root).items()
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def modules(tree: ast.AST, root: Path) -> dict[str, Path]:
    """The project's modules that `tree` uses, transitively: dotted name -> file, sorted by name."""
    found: dict[str, Path] = {}
    waiting = sorted(set(_imports(tree, "", root)))
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
        for node in _import_nodes(_parse(path, path.stat().st_mtime_ns)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _defining_module(_absolute(node, base), alias.name, root)
    return base


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _file(name: str, root: Path) -> Path | None:
    stem = root.joinpath(*name.split("."))
    candidates = (stem.with_name(stem.name + ".py"), stem / "__init__.py")
    return next((path for path in candidates if name and path.is_file()), None)


# The book asks for two dozen notebooks in a row, most of which use the same files.
@functools.lru_cache(maxsize=256)
def _parse(path: Path, mtime_ns: int) -> ast.Module:
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
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


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
