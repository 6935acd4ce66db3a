"""Several of our modules as one file that imports none of them, for people who do not have the package.

Definitions keep their names unless two modules use the same one for different things; then the second gets its
module's name as an ending. Comments are lost, docstrings stay.
"""

import ast
import importlib.util
from collections.abc import Collection
from pathlib import Path

from cardiodit.errors import CardioDiTError

PACKAGE = "cardiodit"
Definition = tuple[str, str]  # module and name


def bundle(module: str, heading: str, untyped: Collection[str] = ()) -> str:
    """The source of `module` with everything of the package that it uses, in the order of need.

    Arguments whose names are in `untyped` lose their annotations: each file has classes of its own, and diffusers would
    warn that a component is of another one's.
    """
    modules: dict[str, ast.Module] = {}
    _collect(module, modules)
    names = _unique_names(modules)
    parts = [ast.unparse(_without_our_imports(name, tree, names, untyped)) for name, tree in modules.items()]
    return f'"""{heading}"""\n\n' + "\n\n".join(parts) + "\n"


def _collect(module: str, modules: dict[str, ast.Module]) -> None:
    """Parses a module after all that it imports of the package."""
    if module in modules:
        return
    tree = ast.parse(_source(module))
    for node in _our_imports(tree):
        for alias in node.names:
            _collect(_definition(str(node.module), alias.name)[0], modules)
    modules[module] = tree


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise CardioDiTError(f"The source of {module} is not there to be bundled.")
    return Path(spec.origin).read_text(encoding="utf-8")


def _our_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """Every `from cardiodit… import …`, also within functions."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE
    ]


def _definition(module: str, name: str) -> Definition:
    """Where a name that a module offers was defined; packages only pass names on."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return module, name
    for node in _our_imports(ast.parse(_source(module))):
        if any(alias.name == name for alias in node.names):
            return _definition(str(node.module), name)
    raise CardioDiTError(f"{module} defines {name} itself; packages that are bundled may only pass names on.")


def _defined(tree: ast.Module) -> list[str]:
    """The names that a module defines at its top level."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
    return names


def _unique_names(modules: dict[str, ast.Module]) -> dict[Definition, str]:
    """A name for every definition that no other one has."""
    unique: dict[Definition, str] = {}
    taken: set[str] = set()
    for module, tree in modules.items():
        for name in dict.fromkeys(_defined(tree)):
            ending = module.rsplit(".", 1)[-1]
            unique[module, name] = name if name not in taken else f"{name}_of_{ending}"
            taken.add(unique[module, name])
    return unique


def _without_our_imports(
    module: str, tree: ast.Module, names: dict[Definition, str], untyped: Collection[str]
) -> ast.Module:
    """The module's body under its unique names, without its docstring and its imports of the package."""
    seen = {name: names[module, name] for name in _defined(tree)}
    for node in _our_imports(tree):
        for alias in node.names:
            seen[alias.asname or alias.name] = names[_definition(str(node.module), alias.name)]
    changed = {old: new for old, new in seen.items() if old != new}
    tree = _Renamed(changed, untyped).visit(tree)
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    return ast.fix_missing_locations(tree)


class _Renamed(ast.NodeTransformer):
    """Gives names their unique form and drops imports of the package."""

    def __init__(self, names: dict[str, str], untyped: Collection[str]) -> None:
        self.names = names
        self.untyped = untyped

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module and node.module.split(".")[0] == PACKAGE else node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        if node.arg in self.names:
            raise CardioDiTError(f"The argument {node.arg} has the name of something that is renamed in a bundle.")
        if node.arg in self.untyped:
            node.annotation = None
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.name = self.names.get(node.name, node.name)
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.name = self.names.get(node.name, node.name)
        self.generic_visit(node)
        return node
