"""Bundle several modules of the package into one file that does not import the package.

Definitions keep their names unless two modules define the same one; then the second gets its module's name as a suffix.
Comments are lost, docstrings are kept.
"""

import ast
import importlib.util
from collections.abc import Collection
from pathlib import Path

from cardiodit.errors import CardioDiTError

PACKAGE = "cardiodit"
Definition = tuple[str, str]  # module and name


def bundle(module: str, heading: str, untyped: Collection[str] = ()) -> str:
    """Return the source of a module together with everything that it uses from the package, dependencies first.

    Arguments whose names are in `untyped` lose their annotations: each bundle defines its own classes, and diffusers
    would warn that a component is not an instance of the annotated class.
    """
    modules: dict[str, ast.Module] = {}
    _collect(module, modules)
    names = _unique_names(modules)
    parts = [ast.unparse(_without_our_imports(name, tree, names, untyped)) for name, tree in modules.items()]
    return f'"""{heading}"""\n\n' + "\n\n".join(parts) + "\n"


def _collect(module: str, modules: dict[str, ast.Module]) -> None:
    """Parse a module after all the modules that it imports from the package."""
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
        raise CardioDiTError(f"The source of {module}, which is needed for the bundle, was not found.")
    return Path(spec.origin).read_text(encoding="utf-8")


def _our_imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """Return every `from cardiodit… import …`, including those inside functions."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE
    ]


def _definition(module: str, name: str) -> Definition:
    """Return where a name that a module exports is defined; packages may only re-export names."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return module, name
    for node in _our_imports(ast.parse(_source(module))):
        if any(alias.name == name for alias in node.names):
            return _definition(str(node.module), name)
    raise CardioDiTError(f"{module} defines {name} itself; packages that are bundled may only re-export names.")


def _defined(tree: ast.Module) -> list[str]:
    """Return the names that a module defines at its top level."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
    return names


def _unique_names(modules: dict[str, ast.Module]) -> dict[Definition, str]:
    """Return a unique name for every definition."""
    unique: dict[Definition, str] = {}
    taken: set[str] = set()
    for module, tree in modules.items():
        for name in dict.fromkeys(_defined(tree)):
            unique[module, name] = name if name not in taken else f"{name}_of_{module.rsplit('.', 1)[-1]}"
            taken.add(unique[module, name])
    return unique


def _without_our_imports(
    module: str, tree: ast.Module, names: dict[Definition, str], untyped: Collection[str]
) -> ast.Module:
    """Return a module with unique names, without its docstring and its imports from the package."""
    names_here = {name: names[module, name] for name in _defined(tree)}
    for node in _our_imports(tree):
        for alias in node.names:
            names_here[alias.asname or alias.name] = names[_definition(str(node.module), alias.name)]
    changed = {old: new for old, new in names_here.items() if old != new}
    tree = _Renamed(changed, untyped).visit(tree)
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    return ast.fix_missing_locations(tree)


class _Renamed(ast.NodeTransformer):
    """Replaces names by their unique form and drops imports from the package."""

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
            raise CardioDiTError(f"The argument {node.arg} has the same name as a definition that the bundle renames.")
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
