"""Mutants of a Python file: each differs from it in one operator, constant, condition, keyword argument or statement.

The texts of messages are not mutated: strings, and whatever a logger, a `Problem` or a raised error is given. Nor is
what runs at import: defaults, decorators, the bodies of classes.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType

UNHEARD = {"fix", "device", "encoding"}
"""Keyword arguments that are a message's, or that no test on one CPU and UTF-8 can miss."""

MESSAGES = {"logger", "log", "console", "warnings", "Problem"}
"""Calls of these names and of their methods write for a human reader."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
_PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("sum", "mean"),
    ("zeros_like", "ones_like"),
    ("floor", "ceil"),
    ("startswith", "endswith"),
)
RENAMED = dict(_PAIRS) | {second: first for first, second in _PAIRS}


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        function: its qualified name in the file.
        lines: first and last line of the statement that changes, or of its header.
        was, now: the first line of the part that changes, as source.
        apply: makes the change in the syntax tree that the mutant was found in.
    """

    function: str
    operator: str
    ordinal: int
    lines: tuple[int, int]
    was: str
    now: str
    apply: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.function}:{self.operator}:{self.ordinal}"


def mutants_of(tree: ast.Module) -> Iterator[Mutant]:
    """All mutants of a file, in the order of the source."""
    for function, node in _functions(tree.body, ""):
        ordinals: Counter[str] = Counter()
        for lines, operator, old, new, apply in _changes(node.body, (node.lineno, node.lineno)):
            was, now = (ast.unparse(part).strip().splitlines()[0] for part in (old, new))
            yield Mutant(function, operator, ordinals[operator], lines, was, now, apply)
            ordinals[operator] += 1


def functions_of(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Functions and methods of a compiled module, by qualified name and ordinal among those of that name."""
    found: dict[tuple[str, int], CodeType] = {}
    count: Counter[str] = Counter()

    def collect(code: CodeType) -> None:
        for constant in code.co_consts:
            if (
                isinstance(constant, CodeType) and not constant.co_flags & 1
            ):  # CO_OPTIMIZED: the body of a class lacks it.
                collect(constant)
            elif isinstance(constant, CodeType):
                found[constant.co_qualname, count[constant.co_qualname]] = constant
                count[constant.co_qualname] += 1

    collect(code)
    return found


def install(functions: list[FunctionType], before: CodeType, after: CodeType) -> int:
    """Give the live functions of a module the code of its changed version; returns how many changed.

    Raises:
        ValueError: a function has other free variables than before.
    """
    old, new = functions_of(before), functions_of(after)
    names = {(code.co_qualname, code.co_firstlineno): name for name, code in old.items()}
    changed = 0
    for function in functions:
        name = names.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if name in new and old[name] != new[name]:
            function.__code__ = new[name]
            changed += 1
    return changed


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


_Change = tuple[tuple[int, int], str, ast.AST, ast.AST, Callable[[], None]]


def _changes(statements: list[ast.stmt], lines: tuple[int, int]) -> Iterator[_Change]:
    """Changes of each statement, and below it."""
    for index, statement in enumerate(statements):
        yield from _changes_of(statement, lambda new, at=index: statements.__setitem__(at, new), lines)


def _changes_of(node: ast.AST, put: Callable[[ast.AST], None], lines: tuple[int, int]) -> Iterator[_Change]:
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        lines = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno)
    if _is_message(node):
        return
    for operator, new in _variants(node):
        placed = ast.fix_missing_locations(ast.copy_location(new, node))
        yield lines, operator, node, placed, lambda new=placed: put(new)
    if isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.Expr) and _is_message(node.value)):
        return
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "args", "decorator_list"} and not isinstance(node, ast.Call):
            continue
        if isinstance(value, list):
            for index, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _changes_of(child, lambda new, at=index, of=value: of.__setitem__(at, new), lines)
        elif isinstance(value, ast.AST):
            yield from _changes_of(value, lambda new, field=field: setattr(node, field, new), lines)


def _is_message(node: ast.AST) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    while isinstance(function, ast.Attribute):
        function = function.value
    return isinstance(function, ast.Name) and function.id in MESSAGES


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Replacements of a node, each with the name of the operator that makes it."""
    match node:
        case ast.Compare(left, [first, *others], comparators) if type(first) in SWAPPED:
            yield "compare", ast.Compare(left, [SWAPPED[type(first)](), *others], comparators)
        case ast.BoolOp(op, values):
            yield "boolean", ast.BoolOp(SWAPPED[type(op)](), values)
        case ast.BinOp(left, op, right) if type(op) in SWAPPED and not (_is_text(left) or _is_text(right)):
            yield "arithmetic", ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.AugAssign(target, op, value):
            if type(op) in SWAPPED:
                yield "arithmetic", ast.AugAssign(target, SWAPPED[type(op)](), value)
            yield "statement", ast.Pass()
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield "sign", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.If(test, body, orelse):
            yield "condition", ast.If(_negated(test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield "condition", ast.IfExp(_negated(test), body, orelse)
        case ast.comprehension(target, iterable, [first, *others], is_async):
            yield "condition", ast.comprehension(target, iterable, [_negated(first), *others], is_async)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call() as call) if not _is_message(call):
            yield "statement", ast.Pass()
        case ast.Raise() | ast.Continue() | ast.Assign([ast.Attribute() | ast.Subscript()], _):
            yield "statement", ast.Pass()
        case ast.Call(function, arguments, keywords):
            yield from _variants_of_call(function, arguments, keywords)


def _variants_of_call(
    function: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]
) -> Iterator[tuple[str, ast.AST]]:
    for index, keyword in enumerate(keywords):
        if keyword.arg is not None and keyword.arg not in UNHEARD:
            yield "keyword", ast.Call(function, arguments, keywords[:index] + keywords[index + 1 :])
    match function:
        case ast.Name(name) if name in RENAMED:
            yield "call", ast.Call(ast.Name(RENAMED[name], ast.Load()), arguments, keywords)
        case ast.Attribute(of, name) if name in RENAMED:
            yield "call", ast.Call(ast.Attribute(of, RENAMED[name], ast.Load()), arguments, keywords)
        case ast.Attribute(of, "detach"):
            yield "call", of


def _negated(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
