"""Which of the library's code a result depends on: the functions that ran for it, and the constants that they name.

A result is out of date when one of those changed. Code that it never ran, comments and docstrings do not count.
"""

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

PACKAGE = Path(__file__).parent
Result = TypeVar("Result")


@contextmanager
def watch() -> Iterator[dict[str, str]]:
    """Within the block, note what of the library runs in this thread; after it, the mapping given is filled:

    name of a definition (``"rules:linear"``) to the digest of its code.
    """
    uses: dict[str, str] = {}
    for module in modules():  # read the sources now: they may be edited before the block ends
        constants(module)
    with noting() as ran:
        yield uses
    files = {str(PACKAGE / f"{name.replace('.', '/')}.py"): name for name in modules() if name != "dependencies"}
    places = {(files[code.co_filename], code.co_firstlineno) for code in ran if code.co_filename in files}
    found = {f"{module}:{d.name}": d for module, line in places for d in definitions(module) if line in d.lines}
    uses |= {name: digest(found[name]) for name in sorted(found)}


NOTES: list[set[CodeType]] = []
"""What ran so far, for every `noting` that is going on."""


@contextmanager
def noting() -> Iterator[set[CodeType]]:
    """Note all code that runs within the block, in this thread."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            ran.add(frame.f_code)

    before = sys.getprofile()
    NOTES.append(ran)
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)
        NOTES.pop()
        for outer in NOTES:
            outer |= ran


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """As `functools.cache`, but whoever gets a remembered result also depends on the code that once made it."""
    made: dict[tuple[Any, ...], tuple[Result, set[CodeType]]] = {}

    @wraps(function)
    def remember(*args: Any) -> Result:
        if args not in made:
            with noting() as ran:
                result = function(*args)
            made[args] = result, ran
        result, ran = made[args]
        for notes in NOTES:
            notes |= ran
        return result

    remember.cache_clear = made.clear  # type: ignore[attr-defined]
    return remember


def changed(uses: Mapping[str, str]) -> list[str]:
    """The names in `uses` whose code is not what it was, or is gone."""
    now: dict[str, str] = {}
    for module in {name.partition(":")[0] for name in uses}:
        now |= {f"{module}:{d.name}": digest(d) for d in definitions(module)}
    return [name for name, was in uses.items() if now.get(name) != was]


@dataclass(frozen=True)
class Definition:
    """A function, a method (``"Class.method"``) or a constant at the top of a module, its docstrings left out.

    A method's code holds its class's decorators and bases, and those class attributes that it names.
    """

    module: str
    name: str
    lines: frozenset[int]
    code: str
    names: frozenset[str]
    constant: bool


def modules() -> list[str]:
    """The names of the library's modules, such as ``"attacks.base"``."""
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))]


@cache
def definitions(module: str) -> tuple[Definition, ...]:
    """The definitions of a module of this library; none if there is no such module."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    return tuple(parse(module, read(path))) if path.is_file() else ()


def read(path: Path) -> ast.Module:
    """The code of a file, docstrings and other bare strings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return tree


def parse(module: str, tree: ast.Module) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield definition(module, node.name, [node])
        elif isinstance(node, ast.ClassDef):
            yield from methods(module, node)
        else:
            for name in targets(node):
                yield definition(module, name, [node], constant=True)


def methods(module: str, node: ast.ClassDef) -> Iterator[Definition]:
    """The methods of a class; a property and its setter are one."""
    attributes = {name: part for part in node.body for name in targets(part)}
    head = ast.Tuple([*node.decorator_list, *node.bases], ast.Load())
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    for name in dict.fromkeys(function.name for function in functions):
        parts = [function for function in functions if function.name == name]
        named = {n.attr for part in parts for n in ast.walk(part) if isinstance(n, ast.Attribute)}
        used = [attributes[attribute] for attribute in sorted(named & attributes.keys())]
        yield definition(module, f"{node.name}.{name}", parts, [head, *used])


def definition(
    module: str, name: str, parts: Sequence[ast.stmt], more: Sequence[ast.AST] = (), *, constant: bool = False
) -> Definition:
    lines: set[int] = set()
    for part in parts:
        decorators = [d.lineno for d in getattr(part, "decorator_list", [])]
        lines |= set(range(min([part.lineno, *decorators]), (part.end_lineno or 0) + 1))
    trees = [*parts, *more]
    names = frozenset(n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name))
    # Not ast.dump, whose text differs between versions of Python.
    code = "\n".join(ast.unparse(ast.fix_missing_locations(tree)) for tree in trees)
    return Definition(module, name, frozenset(lines), code, names, constant)


def targets(node: ast.stmt) -> list[str]:
    """The names that an assignment gives a value to."""
    match node:
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


@cache
def constants(module: str) -> dict[str, Definition]:
    """The library's constants that a module sees by name: its own, and those that it imports from others."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    seen = {d.name: d for d in definitions(module) if d.constant}
    for node in read(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("clearstamp."):
            theirs = {d.name: d for d in definitions(node.module.removeprefix("clearstamp.")) if d.constant}
            seen |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return seen


@cache
def digest(definition: Definition) -> str:
    """A digest of a definition's code and of the constants that it names, and those that these name."""
    needed, todo = {definition}, [definition]
    while todo:
        one = todo.pop()
        visible = constants(one.module)
        fresh = {visible[name] for name in one.names & visible.keys()} - needed
        needed |= fresh
        todo += fresh
    return hashlib.sha256("\n".join(sorted(d.code for d in needed)).encode()).hexdigest()[:16]


@cache
def library_digest() -> str:
    """sha256 over the code of the whole library and its claims."""
    whole = hashlib.sha256((PACKAGE / "claims.yml").read_bytes())
    for path in sorted(PACKAGE.rglob("*.py")):
        whole.update(ast.unparse(read(path)).encode())
    return whole.hexdigest()
