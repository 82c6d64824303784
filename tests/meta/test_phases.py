"""docs/design.rst shows the tables of phases as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "render_phases.py"


def test_the_design_shows_the_tables_of_phases():
    spec = importlib.util.spec_from_file_location("render_phases", PATH)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    page = module.PAGE.read_text("utf-8")
    assert page == module.page_with(module.rendered(), page), "run: python docs/render_phases.py"
