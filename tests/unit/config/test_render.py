import pytest

from rtmpd.config import render
from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        (5, "5"),
        (5.0, "5"),
        (0.25, "0.25"),
        (1e-07, "1e-07"),
        ("info", "info"),
        ("", '""'),
        (" a", '" a"'),
        ("a,b", '"a,b"'),
        ("a#b", '"a#b"'),
        ("it's", '"it\'s"'),
        ('"a"', "'\"a\"'"),
        ((ListenAddress("", 1), ListenAddress("::1", 2)), ":1, [::1]:2"),
    ],
)
def test_values_are_rendered(value, text):
    assert render.render_value(value) == text


@pytest.mark.parametrize("value", [None, "\"'", "a\nb"])
def test_values_that_can_not_be_rendered_are_refused(value):
    with pytest.raises((TypeError, ValueError), match="can't render"):
        render.render_value(value)


def test_a_printed_configuration_loads_back():
    config = load_text(
        """
        [server]
        listen = :0, [fe80::1%eth0]:1936
        handshake_timeout_s = 0.123456789
        ping_interval_s = -0.0
        [log]
        level = error
        [live]
        default_stream_name = "a,b"
        pacing_share = 0.30000000000000004
        [applications]
        [["b,c"]]
        gop_cache = no
        [[*]]
        keyframe_wait_s = 1e-1
        """
    )
    printed = render.render_config(config)
    assert load_text(printed) == config
    assert render.render_config(load_text(printed)) == printed


def test_the_defaults_load_back():
    assert load_text(render.render_config(load_text(""))) == load_text("")


def test_the_tables_go_between_their_marks():
    text = f"before\n{render._BEGIN}old\n{render._END}after\n"
    replaced = render.replace_tables(text)
    assert replaced.startswith(f"before\n{render._BEGIN}\n[server]\n")
    assert replaced.endswith(f"\n{render._END}after\n")
    assert "old\n" not in replaced
    assert render.replace_tables(replaced) == replaced


@pytest.mark.parametrize("text", ["", render._BEGIN, render._END])
def test_a_text_without_marks_is_refused(text):
    with pytest.raises(ValueError, match="marks"):
        render.replace_tables(text)


def test_the_command_rewrites_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "__file__", str(tmp_path / "rtmpd" / "config" / "render.py"))
    assert render.main() == 1
    assert "not a checkout" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "man").mkdir()
    pages = [tmp_path / "man" / name for name in ("rtmpd.ini.5", "rtmpd.8")]
    for page in pages:
        page.write_text(f"before\n{render._MAN_BEGIN}{render._MAN_END}after\n")
    docs = tmp_path / "docs" / "configuration.rst"
    docs.write_text(f"ä\n{render._BEGIN}{render._END}", "utf-8")
    assert render.main() == 0
    assert render.render_rst_tables() in docs.read_text("utf-8")
    assert (tmp_path / "etc" / "rtmpd.ini").read_text("utf-8") == render.render_sample()
    for page, word in zip(pages, ("read_timeout_s", "record\\-all"), strict=True):
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert word in text
