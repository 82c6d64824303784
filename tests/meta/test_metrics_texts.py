"""docs/metrics.rst lists all exported families, and every counter of the server is exported."""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

from rtmpd.config.loader import load_text
from rtmpd.hub import _STREAM_COUNTERS, Hub, RelayFigures
from rtmpd.live.selection import Cause
from rtmpd.phases import CLOSE_COUNTERS
from rtmpd.services.metrics.catalogue import COUNTERS, FAILURES, GAUGES, SWITCHES
from rtmpd.services.metrics.service import Metrics
from tests.unit.live.fakes import keyframe, new_source

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.rst"
SOURCES = sorted((ROOT / "rtmpd").rglob("*.py"))


@pytest.fixture(scope="module")
def metrics():
    """Metrics of a server with a stream, two sources and a relay that have every figure."""
    config = load_text("[publish]\non_conflict = backup\n")
    hub = Hub(config)
    source = new_source()
    stream = hub.publish("live/a", source)
    hub.publish("live/a", new_source())
    source.video(0, keyframe())
    source.video(1000, keyframe())
    hub.relays = lambda: [RelayFigures("live/a", "there", "up")]
    made = Metrics(hub, Metrics.select(config))
    yield made
    made.stop(1)
    stream.end()
    stream.close()


def rows():
    """The tables of families: name to type, labels and unit."""
    settings = {"report_level": 5, "warning_stream": io.StringIO(), "input_encoding": "utf-8"}
    document = docutils.core.publish_doctree(PAGE.read_text("utf-8"), settings_overrides=settings)
    found = {}
    for row in document.findall(docutils.nodes.row):
        cells = [entry.astext() for entry in row.findall(docutils.nodes.entry)]
        if len(cells) == 5 and cells[0] != "Name":
            name, kind, labels, unit, meaning = cells
            assert name not in found
            assert unit
            assert meaning.endswith(".")
            found[name] = (kind, set(labels.split(", ")) - {""}, unit)
    return found


def test_the_page_lists_every_family_with_its_type_and_labels(metrics):
    text = metrics.text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels = {name: set() for name in kinds}
    for name, block in re.findall(r"^(\w+?)(?:_bucket|_count|_sum)?\{(.*)\} \S+$", text, re.MULTILINE):
        labels[name] |= set(re.findall(r'(\w+)="', block)) - {"le"}
    assert {name: (kind, names) for name, (kind, names, _) in rows().items()} == {
        name: (kind, labels[name]) for name, kind in kinds.items()
    }
    # With a sample of each, the labels are known to be all.
    assert all(re.search(rf"^{name}(_count)?[ {{]", text, re.MULTILINE) for name in kinds)


def test_names_and_units_agree():
    for name, (kind, _, unit) in rows().items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert ("seconds" in name) == unit.startswith("seconds"), name
        assert ("bytes" in name.removesuffix("_total").split("_")) == (unit == "bytes"), name


def test_the_page_lists_every_reason_of_a_failure():
    part = PAGE.read_text("utf-8").partition("Reasons of")[2].partition("\nStreams\n")[0]
    assert re.findall(r"^``(\w+)``  ", part, re.MULTILINE) == sorted(FAILURES)


def test_every_cause_of_a_switch_has_a_counter_and_is_on_the_page():
    causes = {str(cause) for cause in Cause} - {str(Cause.FIRST)}
    assert {f"source_switches_{cause}": cause for cause in causes} == SWITCHES
    (meaning,) = re.findall(r"``rtmpd_source_switches_total``.*?\n   ``rtmpd", PAGE.read_text("utf-8"), re.DOTALL)
    assert causes <= set(re.findall(r"``(\w+)``", meaning))


def test_the_page_lists_the_names_of_debug_vars(metrics):
    part = PAGE.read_text("utf-8").partition("\nJSON\n")[2]
    listed = set(re.findall(r"``(rtmp_\w+)``", part))
    assert listed | {"streams", "sources", "relays"} == set(json.loads(metrics.json()))


def test_alerts_use_families_and_reasons_that_exist(metrics):
    text = metrics.text().decode()
    known = set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    part = PAGE.read_text("utf-8").partition("\nAlerts\n")[2].partition("\nJSON\n")[0]
    used = set(re.findall(r"\b(?:rtmpd?|process)_\w+", part))
    assert len(used) > 8
    assert used <= known
    assert set(re.findall(r"\b\w+_\w+s\b", " ".join(re.findall(r'reason=~?"(.*?)"', part)))) <= set(FAILURES)


# What the server counts -----------------------------------------------------------------------------------------------------


def constants(node, scope):
    """The strings that an expression may have as its value; None if the source does not show them."""
    if isinstance(node, ast.Constant):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return constants(node.body, scope) | constants(node.orelse, scope)
    if isinstance(node, ast.Name):
        values = [
            each.value
            for each in ast.walk(scope)
            if isinstance(each, ast.Assign) and any(isinstance(to, ast.Name) and to.id == node.id for to in each.targets)
        ]
        return set().union(*(constants(value, scope) for value in values)) if values else None
    return None


def counted():
    """Every name that the source counts under, and where; a name that is an argument is its caller's."""
    found = {name: "rtmpd/phases.py" for names in CLOSE_COUNTERS.values() for name in names}
    for path in SOURCES:
        for scope in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(scope, ast.FunctionDef):
                continue
            parameters = {argument.arg for argument in scope.args.args}
            for node in ast.walk(scope):
                name = None
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    owner, method = ast.unparse(node.func.value), node.func.attr
                    # A close reason has its counters in a table.
                    table = ast.unparse(node) == "self.hub.count(counter)"
                    counts = owner.endswith(("hub", "server")) or (owner.endswith("host") and path.parent.name == "http")
                    if method == "_count" or (method == "count" and counts and not table):
                        name = node.args[0]
                elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("counters"):
                    name = node.slice
                if name is None or (isinstance(name, ast.Name) and name.id in parameters):
                    continue
                names = constants(name, scope)
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert names, f"{where}: which counter is that?"
                found |= dict.fromkeys(names, where)
    return found


def test_every_counter_has_a_family():
    found = counted() | dict.fromkeys(_STREAM_COUNTERS, "rtmpd/hub.py")
    assert len(found) > 20
    known = COUNTERS.keys() | FAILURES.keys()
    missing = {name: where for name, where in found.items() if name not in known}
    assert not missing, "add them to rtmpd/services/metrics/catalogue.py and to docs/metrics.rst"


def test_every_family_has_a_counter():
    to_come = {name for name in COUNTERS if name.startswith(("auth_", "relay_"))}
    counters = (COUNTERS.keys() | FAILURES.keys()) - to_come
    assert counters <= counted().keys() | set(_STREAM_COUNTERS)
    assert not COUNTERS.keys() & FAILURES.keys()


def test_every_gauge_has_a_family():
    text = "".join(path.read_text("utf-8") for path in SOURCES)
    assert set(re.findall(r'gauges\["(\w+)"\] = ', text)) == set(GAUGES)


def test_no_family_is_there_twice(metrics):
    names = re.findall(r"^# TYPE (\S+)", metrics.text().decode(), re.MULTILINE)
    assert len(names) == len(set(names))
