"""Whether the graph in a pt2 file is only a graph.

torch's loader evaluates parts of `model.json` as Python: sizes are expressions for sympy, guards become the source of a
function, a node's target may be any function that can be reached from the module `torch` (`torch.os.system`, say). So
every text of the file is judged before torch sees it: targets are operators of a tensor library, expressions are
arithmetic, all other texts are names.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.(?!from_file)_?[a-zA-Z][a-zA-Z0-9_]*\.[a-zA-Z][a-zA-Z0-9_]*")
_PLAIN_TARGETS = {
    *(f"_operator.{name}" for name in ("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow")),
    *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")),
    *(f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")),
    *(f"torch.sym_{name}" for name in ("int", "float", "max", "min", "not", "ite", "sum")),
    "torch._sym_sqrt",
}
# What sizes are written in: sympy's arithmetic, torch's additions to it, and comparisons.
_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le"),
    *("Gt", "Ge", "And", "Or", "Not", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "Identity", "Where"),
    *("IntTrueDiv", "FloatTrueDiv", "FloatPow", "PowByNatural", "ToFloat", "TruncToInt", "TruncToFloat", "CeilToInt"),
    *("FloorToInt", "RoundToInt", "RoundDecimal", "ModularIndexing", "IsNonOverlappingAndDenseIndicator"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "ceiling", "floor"),
    *("OpaqueUnaryFn_sqrt", "Piecewise", "ExprCondPair"),
}
_METHODS = {"size", "stride", "storage_offset", "item"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = re.compile(r"[\w.\- +/,>]*")
# Texts that torch keeps beside the nodes and reads as data.
_NOTES = {"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom", "seq_nr"}
_SPECS = {"in_spec", "out_spec"}
_PYTREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def flaw_of_graph(text: bytes) -> str:
    """Why a graph is not opened; empty for a plain one.

    Args:
        text: `models/model.json` of the file.

    Raises:
        ValueError: it is no JSON.
    """
    return next((flaw for key, value in _texts(json.loads(text), "") if (flaw := _flaw(key, value))), "")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text with the key that it stands under; the keys of mappings, which may be names of tensors, too."""
    if isinstance(value, dict):
        for name, inner in value.items() if key not in _NOTES else ():
            yield "", name
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _flaw(key: str, text: str) -> str:
    if key == "target":
        known = text in _PLAIN_TARGETS or _OPERATOR.fullmatch(text)
        return "" if known else f"calls {text!r}, which is no operator on tensors"
    if key in ("expr_str", "guards_code"):
        return "" if _is_arithmetic(text) else f"holds {text[:200]!r}, which is no arithmetic of sizes"
    if key in _SPECS:
        return "" if _is_plain_tree(text) else f"holds {text[:200]!r}, which is no tuple of tensors"
    if key in _NOTES or _WORDS.fullmatch(text):
        return ""
    return f"holds {text[:200]!r}, which is no name"


def _is_arithmetic(text: str) -> bool:
    if len(text) > 100_000:
        return False
    try:
        return _allowed(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _allowed(node: ast.AST) -> bool:
    """Numbers, symbols, arithmetic, comparisons, the functions above, and the sizes of `L['x']`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Name):
        return _is_symbol(node.id)
    if isinstance(node, ast.Call):
        return _is_known_call(node)
    if isinstance(node, ast.Subscript):
        return _is_input(node) or (_is_known(node.value) and _allowed(node.slice))
    parts = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple)
    signs = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)
    return isinstance(node, parts) and all(isinstance(at, signs) or _allowed(at) for at in ast.iter_child_nodes(node))


def _is_symbol(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z]+\d+|True|False|oo|int_oo", name))


def _is_known(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _allowed(node)


def _is_known_call(node: ast.Call) -> bool:
    plain = all(keyword.arg is not None and isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in _PLAIN_TARGETS:  # torch.sym_max in guards
        return not node.keywords and all(_allowed(argument) for argument in node.args)
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in _METHODS and _is_input(node.func.value) and not node.keywords and not node.args
    if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or not plain:
        return False
    if node.func.id == "Symbol":
        named = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
        return isinstance(named, str) and _NAME.fullmatch(named) is not None
    return all(_allowed(argument) for argument in node.args)


def _is_input(node: ast.AST) -> bool:
    """`L['x']`, as guards name what goes in."""
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "L"
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and _NAME.fullmatch(node.slice.value) is not None
    )


def _is_plain_tree(text: str) -> bool:
    """A structure of tuples, lists and mappings; torch builds other kinds by importing what the text names."""
    if not text:
        return True
    try:
        return _plain_tree(json.loads(text)[1])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _plain_tree(spec: Any) -> bool:
    named = json.loads(spec["context"]) if spec["context"] else None
    plain = named is None or (isinstance(named, list) and all(isinstance(name, str) for name in named))
    return spec["type"] in _PYTREES and plain and all(_plain_tree(child) for child in spec["children_spec"])
