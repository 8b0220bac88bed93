"""Small faults of a module: a factor dropped, a bound moved, a guard that never refuses."""

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
FACTORS = (ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
OPPOSITES = {
    "min": "max",
    "minimum": "maximum",
    "argmin": "argmax",
    "floor": "ceil",
    "any": "all",
    "logical_and": "logical_or",
    "zeros": "ones",
    "zeros_like": "ones_like",
}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
# Functions whose first argument may pass for their result.
DROPPED = {"fold_in", "abs", "clip", "round", "rint", "sqrt", "stop_gradient", "sorted", "ceil"}

# Keywords that say how a table looks, or that repeat what a type checker or another line asserts.
QUIET = {"strict", "style", "overflow", "justify", "title", "box", "stacklevel", "header_style"}


class Fault(NamedTuple):
    """One change of a module's source.

    Attributes:
      path: Path of the module, relative to the repository.
      line: Line where it begins.
      where: Function or class it stands in, dotted; empty at the module's level.
      was: Expression or statement as it is.
      became: What stands there instead.
      number: Place among the module's generated faults; -1 where `was` is replaced as text.
    """

    path: str
    line: int
    where: str
    was: str
    became: str
    number: int = -1


def generated_faults(source: str, path: str) -> list[Fault]:
    """Lists every fault that the rules of this module find in a source, in order of lines."""
    walk = _Walk(path, None)
    walk.visit(ast.parse(source))
    return walk.faults


def planted(source: str, fault: Fault) -> ast.Module:
    """Returns the tree of a source with one fault in it.

    Raises:
      ValueError: The text that the fault replaces does not stand in the source just once.
    """
    if fault.number < 0:
        if source.count(fault.was) != 1:
            raise ValueError(f"{fault.path}: {fault.was!r} stands {source.count(fault.was)} times")
        return ast.parse(source.replace(fault.was, fault.became))
    tree = ast.parse(source)
    return ast.fix_missing_locations(_Walk(fault.path, fault.number).visit(tree))


class _Walk(ast.NodeTransformer):
    def __init__(self, path: str, wanted: int | None) -> None:
        self.path, self.wanted = path, wanted
        self.faults: list[Fault] = []
        self.scope: list[str] = []

    def visit(self, node: ast.AST) -> ast.AST:
        if _says_nothing(node):
            return node
        for new in _alternatives(node):
            number = len(self.faults)
            was, became = (ast.unparse(n).split("\n")[0] for n in (node, new))
            where = ".".join(self.scope)
            line = (node.target if isinstance(node, ast.comprehension) else node).lineno
            self.faults.append(Fault(self.path, line, where, was, became, number))
            if number == self.wanted:
                return ast.copy_location(new, node)
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if named:
            self.scope.append(node.name)
        node = self._inside(node)
        if named:
            self.scope.pop()
        return node

    def _inside(self, node: ast.AST) -> ast.AST:
        """Visits what a node holds, but for annotations, decorators and messages of errors."""
        kept = {
            name: getattr(node, name)
            for name in ("annotation", "returns", "decorator_list", "type_params")
            if getattr(node, name, None)
        }
        for name, value in kept.items():
            setattr(node, name, [] if isinstance(value, list) else None)
        node = self.generic_visit(node)
        for name, value in kept.items():
            setattr(node, name, value)
        return node


def _says_nothing(node: ast.AST) -> bool:
    """Whether a node holds no computation: imports, texts, messages, names of the public face."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        first = node.targets[0]
        return isinstance(first, ast.Name) and first.id in ("__all__", "__getattr__")
    if isinstance(node, ast.keyword):
        return node.arg in QUIET
    if isinstance(node, ast.Call):
        return _called(node) in ("warn", "TypeVar", "named_scope", "NewType")
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what might stand in a node's place."""
    match node:
        case ast.BinOp(left, op, right):
            if any(isinstance(x, ast.JoinedStr) or _is_text(x) for x in (left, right)):
                return
            if isinstance(op, FACTORS):
                yield left
            if isinstance(op, ast.Mult):
                yield right
            if isinstance(op, ast.Div):
                yield ast.BinOp(left, ast.Mult(), right)
            if type(op) in SWAPPED and not _is_union(node):
                yield ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                new = [*ops[:i], SWAPPED[type(op)](), *ops[i + 1 :]]
                yield ast.Compare(left, new, comparators)
        case ast.BoolOp(op, values):
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(value):
            if isinstance(value, bool):
                yield ast.Constant(not value)
            elif isinstance(value, int):
                yield ast.Constant(value + 1)
            elif isinstance(value, float):
                yield ast.Constant(value * 1.1 if value else 1.0)
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.If(_, body, orelse):
            yield ast.If(ast.Constant(False), body, orelse)
            if orelse or not isinstance(body[-1], ast.Raise):
                yield ast.If(ast.Constant(True), body, orelse)
        case ast.Call():
            yield from _other_calls(node)
        case ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Assign([ast.Name(name)], value):
            if name in {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}:
                yield ast.Pass()
        case ast.AugAssign(target, op, value):
            if type(op) in SWAPPED:
                yield ast.AugAssign(target, SWAPPED[type(op)](), value)
            yield ast.Pass()
        case ast.comprehension(target, iterable, [_, *_], is_async):
            yield ast.comprehension(target, iterable, [], is_async)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    name = _called(node)
    if name in OPPOSITES:
        new = copy.copy(node.func)
        if isinstance(new, ast.Attribute):
            new.attr = OPPOSITES[name]
        elif isinstance(new, ast.Name):
            new.id = OPPOSITES[name]
        yield ast.Call(new, node.args, node.keywords)
    if name in DROPPED and node.args:
        yield node.args[0]
    if name == "where" and len(node.args) == 3:
        yield node.args[1]
        yield node.args[2]
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in {None, *QUIET} and isinstance(
            keyword.value, ast.Constant | ast.Name | ast.Attribute
        ):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


def _called(node: ast.Call) -> str:
    func = node.func
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_union(node: ast.BinOp) -> bool:
    """Whether `a | b` joins types: each side is a name with a capital, None or such a union."""
    if not isinstance(node.op, ast.BitOr):
        return False
    sides = [ast.unparse(x).split(".")[-1] for x in (node.left, node.right)]
    return all(s[:1].isupper() or s in ("int", "float", "str", "bool", "tuple") for s in sides)
