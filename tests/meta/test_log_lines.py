"""docs/operations.rst lists every line of level WARNING and above that rtmpd can log, with its level."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import docutils.core
import docutils.nodes
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.rst"
HEADING = "Warnings and errors"
METHODS = {"warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
LEVELS = {"logging.WARNING": "warning", "logging.ERROR": "error", "logging.CRITICAL": "critical"}
CONVERSION = re.compile(r"%[-#0 +]*[\d*]*(?:\.[\d*]+)?[a-zA-Z]")
# What stands for a value on the page: a word in capitals, or, where it may be empty, a text in brackets.
VALUE = r"(?:[A-Z][A-Z_]*|\[[^\]]*\])+"

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Line(NamedTuple):
    """A line that a module can log: level, and message as a template for the % operator (a field of an f-string is %s)."""

    level: str
    template: str


class Module:
    """The lines of one module.

    A message is followed to where it is written: through variables and conditional expressions of its function, through the
    functions of the module that return it and, if it is a parameter, to the calls of the function in the module.

    Attributes:
        lines: The lines, with the numbers of the lines of source.
        unknown: The messages that are not literals, likewise.
    """

    def __init__(self, source: str) -> None:
        self.lines: dict[Line, int] = {}
        self.unknown: dict[str, int] = {}
        self._functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
        self._wrappers: set[tuple[str, str, str]] = set()
        for function in self._functions:
            for call in calls(function):
                for level, message in logged(call, function):
                    self._take(level, message, function)

    def _take(self, level: str, message: ast.expr, function: Function) -> None:
        for value in values(message, function):
            text = template(value)
            returned = self._returned(value)
            if text is not None:
                self.lines[Line(level, text)] = value.lineno
            elif isinstance(value, ast.Name) and value.id in parameters(function):
                self._take_from_callers(level, function, value.id)
            elif returned:
                for result, other in returned:
                    self._take(level, result, other)
            else:
                self.unknown[ast.unparse(value)] = value.lineno

    def _returned(self, value: ast.expr) -> list[tuple[ast.expr, Function]]:
        if not isinstance(value, ast.Call):
            return []
        named = [function for function in self._functions if function.name == last_name(value.func)]
        returns = [(node, function) for function in named for node in ast.walk(function) if isinstance(node, ast.Return)]
        return [(node.value, function) for node, function in returns if node.value is not None]

    def _take_from_callers(self, level: str, wrapper: Function, parameter: str) -> None:
        if (level, wrapper.name, parameter) in self._wrappers:
            return
        self._wrappers.add((level, wrapper.name, parameter))
        at = parameters(wrapper).index(parameter)
        for function in self._functions:
            for call in calls(function):
                if last_name(call.func) == wrapper.name and function is not wrapper and len(call.args) > at:
                    self._take(level, call.args[at], function)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """The calls in a function, without those in functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function):
            if isinstance(child, ast.Call):
                yield child
            yield from calls(child)


def last_name(expression: ast.expr) -> str:
    return ast.unparse(expression).rpartition(".")[2]


def logged(call: ast.Call, function: Function) -> Iterator[tuple[str, ast.expr]]:
    """Level and message, if a call logs at WARNING or above: a method of a log, or any call with a level before a message."""
    for argument, message in zip(call.args, call.args[1:], strict=False):
        for value in values(argument, function):
            if ast.unparse(value) in LEVELS:
                yield LEVELS[ast.unparse(value)], message
    method = call.func
    if isinstance(method, ast.Attribute) and method.attr == "log" and call.args:
        levels = [value for argument in call.args[:2] for value in values(argument, function)]
        known = any(ast.unparse(each).startswith("logging.") or ast.unparse(each) in parameters(function) for each in levels)
        assert known, f"line {call.lineno}: write the level of this log line as a constant of logging"
    if isinstance(method, ast.Attribute) and method.attr in METHODS and last_name(method.value).endswith(("log", "logger")):
        yield METHODS[method.attr], call.args[0]


def parameters(function: Function) -> list[str]:
    """The positional parameters as a caller counts them, without self."""
    return [argument.arg for argument in function.args.args if argument.arg not in {"self", "cls"}]


def values(expression: ast.expr, function: Function, seen: frozenset[str] = frozenset()) -> Iterator[ast.expr]:
    """What an expression may be: each branch of a condition, each value that is assigned to a name in the function."""
    if isinstance(expression, ast.IfExp):
        yield from values(expression.body, function, seen)
        yield from values(expression.orelse, function, seen)
        return
    assigned = list(assignments(expression.id, function)) if isinstance(expression, ast.Name) else []
    if isinstance(expression, ast.Name) and assigned and expression.id not in seen:
        for value in assigned:
            yield from values(value, function, seen | {expression.id})
    else:
        yield expression


def assignments(name: str, function: Function) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Tuple):
                    at = [each.id if isinstance(each, ast.Name) else "" for each in target.elts]
                    yield from (each.elts[at.index(name)] for each in tuples(node.value) if name in at)


def tuples(expression: ast.expr) -> Iterator[ast.Tuple]:
    """The tuples that are written in an expression: itself, or the branches of a condition."""
    if isinstance(expression, ast.IfExp):
        yield from tuples(expression.body)
        yield from tuples(expression.orelse)
    elif isinstance(expression, ast.Tuple):
        yield expression


def template(expression: ast.expr) -> str | None:
    """A string or an f-string as a template; None for anything else."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    if isinstance(expression, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "%s" for part in expression.values)
    return None


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression for a template as the page writes it. Values without text between them are one."""
    pieces = CONVERSION.split(" ".join(text.split()).replace("%%", "%"))
    first, *rest = [re.escape(piece) for piece in pieces]
    return re.compile(
        first + "".join(piece if piece == "" and at < len(rest) - 1 else VALUE + piece for at, piece in enumerate(rest))
    )


def lines_of_the_source() -> dict[Line, str]:
    found = {}
    for path in sorted((ROOT / "rtmpd").rglob("*.py")):
        module = Module(path.read_text("utf-8"))
        assert not module.unknown, f"{path}: write the messages of these lines as literals"
        found |= {line: f"{path.relative_to(ROOT)}:{number}" for line, number in module.lines.items()}
    return found


def lines_of_the_page() -> list[tuple[str, str]]:
    """Level and text of each row of the tables below the heading."""
    settings = {"report_level": 5, "warning_stream": io.StringIO(), "input_encoding": "utf-8"}
    document = docutils.core.publish_doctree(PAGE.read_text("utf-8"), settings_overrides=settings)
    (part,) = [each for each in document.findall(docutils.nodes.section) if each[0].astext() == HEADING]
    found = []
    for body in part.findall(docutils.nodes.tbody):
        for row in body.findall(docutils.nodes.row):
            line, level, meaning = (" ".join(cell.astext().split()) for cell in row)
            assert meaning.endswith("."), line
            found.append((level, line))
    return found


# What the test reads from a source ------------------------------------------------------------------------------------------

SAMPLE = """
class Service:
    def run(self, late):
        self.log.warning("%s: late", self.key)
        log.info("fine")
        level = logging.DEBUG if late else logging.ERROR
        log.log(level, "a" if late else "b")
        why = "%d lost"
        self._throttle.log(log, logging.WARNING, why, 3)
        self._note("noted")
        log.critical(self._text())
        catalog.error.append("x")
        log.exception(f"{self.key} failed")
        log.error(other)
        severity, more = (logging.WARNING, "c") if late else (logging.INFO, "")
        log.log(severity, "tuple %s", more)

    def _note(self, text):
        self.log.warning(text)

    def _text(self):
        return "returned"
"""


def test_the_lines_of_a_module_are_found_however_they_are_logged():
    module = Module(SAMPLE)
    assert set(module.lines) == {
        Line("warning", "%s: late"),
        Line("error", "a"),
        Line("error", "b"),
        Line("warning", "%d lost"),
        Line("warning", "noted"),
        Line("critical", "returned"),
        Line("error", "%s failed"),
        Line("warning", "tuple %s"),
    }
    assert list(module.unknown) == ["other"]


@pytest.mark.parametrize(
    ("text", "line", "same"),
    [
        ("%s: late by %.1f s", "KEY: late by N s", True),
        ("%s: late by %.1f s", "KEY: late", False),
        ("late", "late", True),
        ("late%s%s", "late[: REASON; trying again]", True),
        ("%s%s of 100%%", "REASON of 100%", True),
        ("%s: %s", "KEY: not late", False),
    ],
)
def test_a_line_of_the_page_has_a_word_in_capitals_for_each_value(text, line, same):
    assert bool(pattern(text).fullmatch(line)) is same


# The page -------------------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_warning_and_error_with_its_level():
    source, page = lines_of_the_source(), lines_of_the_page()
    missing = {line: where for line, where in source.items() if not any(fits(line, entry) for entry in page)}
    assert not missing, f"add these to docs/operations.rst, {HEADING}"
    unused = [entry for entry in page if not any(fits(line, entry) for line in source)]
    assert not unused, f"rtmpd logs these no longer: remove them from docs/operations.rst, {HEADING}"


def test_the_page_lists_a_line_once():
    page = lines_of_the_page()
    assert len(page) > 40
    for line in lines_of_the_source():
        assert sum(fits(line, entry) for entry in page) < 2, line


def fits(line: Line, entry: tuple[str, str]) -> bool:
    level, text = entry
    return line.level == level and pattern(line.template).fullmatch(text) is not None
