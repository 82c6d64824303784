import dataclasses
import errno
import os

import pytest
from configobj.validate import Validator

from rtmpd.config.changes import restart_needed
from rtmpd.config.loader import load_file, load_text
from rtmpd.config.model import ListenAddress
from rtmpd.errors import ConfigError


def problems(text, **arguments):
    with pytest.raises(ConfigError) as raised:
        load_text(text, "rtmpd.ini", **arguments)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return raised.value.problems


def problem(text):
    """Return the only problem of a text, without the name of the file."""
    (found,) = problems(text)
    assert found.startswith("rtmpd.ini:")
    return found.removeprefix("rtmpd.ini:")


def test_values_of_each_kind():
    config = load_text(
        """
        [server]
        listen = 127.0.0.1:1935, "[::1]:1936",   # two of them
        chunk_size_bytes = 4096
        handshake_timeout_s = .5
        ping_interval_s=0
        read_timeout_s = 1e2
        [log]
        level = 'debug'
        [live]
        gop_cache = No
        pacing = ON # a comment, "quoted", and 'more
        default_stream_name = "a,b"
        """
    )
    assert config.server.listen == (ListenAddress("127.0.0.1", 1935), ListenAddress("::1", 1936))
    assert config.server.chunk_size_bytes == 4096
    assert config.server.handshake_timeout_s == 0.5
    assert config.server.ping_interval_s == 0
    assert config.server.read_timeout_s == 100
    assert config.log.level == "debug"
    assert config.live.gop_cache is False
    assert config.live.pacing is True
    assert config.live.default_stream_name == "a,b"
    defaults = load_text("")
    assert config.server.write_timeout_s == defaults.server.write_timeout_s


def test_an_application_has_the_options_of_live_except_for_its_own():
    config = load_text("[live]\nkeyframe_wait_s = 3\ngop_cache = no\n[applications]\n[[a]]\n[[b]]\ngop_cache = yes\n")
    assert config.applications["a"].live == config.live
    assert config.applications["b"].live == dataclasses.replace(config.live, gop_cache=True)
    assert config.applications["b"].live.keyframe_wait_s == 3


def test_an_application_can_repeat_a_default_that_live_changes():
    config = load_text("[applications]\n[[a]]\nkeyframe_wait_s = 10\n[live]\nkeyframe_wait_s = 3\n")
    assert config.applications["a"].live.keyframe_wait_s == 10


@pytest.mark.parametrize("name", ["live", "live/sub", '"live"', "'a,b'", "живой", "a-b_c.d~e", "DEFAULT", "DEFAULT/x"])
def test_names_of_applications(name):
    config = load_text(f"[applications]\n[[{name}]]\ngop_cache = no\n")
    assert list(config.applications) == [name.strip("\"'")]
    assert not next(iter(config.applications.values())).live.gop_cache


@pytest.mark.parametrize("value", ["%(name)s", "%", "$HOME", "${x}", "a%20b", "100%"])
def test_nothing_in_a_value_is_replaced(value):
    assert load_text(f"[live]\ndefault_stream_name = {value}\n").live.default_stream_name == value


@pytest.mark.parametrize("text", ["", "\n", "# only a comment", "\ufeff[log]\nlevel = info\n", "[log]\r\nlevel = info\r\n"])
def test_texts_without_options_give_the_defaults(text):
    assert load_text(text) == load_text("[server]\n[log]\n[live]\n[applications]\n")


@pytest.mark.parametrize(
    ("section", "line", "what"),
    [
        # Numbers.
        ("server", "handshake_timeout_s = soon", 'expected a time from 100ms to 1h, got "soon"'),
        ("server", "handshake_timeout_s = nan", 'expected a time from 100ms to 1h, got "nan"'),
        ("server", "handshake_timeout_s = inf", 'expected a time from 100ms to 1h, got "inf"'),
        ("server", "handshake_timeout_s = 1e999", 'expected a time from 100ms to 1h, got "1e999"'),
        ("server", "handshake_timeout_s = -5", 'expected a time from 100ms to 1h, got "-5"'),
        ("server", "handshake_timeout_s = 0", 'expected a time from 100ms to 1h, got "0"'),
        ("server", "handshake_timeout_s = 5 s", 'expected a time from 100ms to 1h, got "5 s"'),
        ("server", "handshake_timeout_s = \u0665", 'expected a time from 100ms to 1h, got "\u0665"'),
        ("server", "ping_timeout_s = 0", 'expected a time from 100ms to 1h, got "0"'),
        ("server", "ping_interval_s = 0.01", 'expected 0 (off) or a time from 100ms to 1h, got "0.01"'),
        ("server", "chunk_size_bytes = 127", 'expected a size from 128 to 16777215, got "127"'),
        ("server", "chunk_size_bytes = 16777216", 'expected a size from 128 to 16777215, got "16777216"'),
        ("server", "chunk_size_bytes = 4096.0", 'expected a size from 128 to 16777215, got "4096.0"'),
        ("server", "chunk_size_bytes = 4_096", 'expected a size from 128 to 16777215, got "4_096"'),
        ("server", "chunk_size_bytes = 0x1000", 'expected a size from 128 to 16777215, got "0x1000"'),
        ("server", "chunk_size_bytes = 4kk", 'expected a size from 128 to 16777215, got "4kk"'),
        ("server", "chunk_size_bytes = yes", 'expected a size from 128 to 16777215, got "yes"'),
        ("limits", "gop_cache_limit_bytes = 0", 'expected a size from 1K to 4G, got "0"'),
        ("live", "pacing_share = 1.5", 'expected a number from 0.01 to 1, got "1.5"'),
        # Words.
        ("live", "gop_cache = maybe", 'expected yes or no, got "maybe"'),
        ("log", "level = loud", 'expected debug, info, warning or error, got "loud"'),
        ("log", "level = INFO", 'expected debug, info, warning or error, got "INFO"'),
        ("log", "level =", "expected debug, info, warning or error, got nothing"),
        ("log", 'level = ""', "expected debug, info, warning or error, got nothing"),
        (
            "live",
            "default_stream_name = a b",
            'expected a name without spaces, quotes, brackets, ? and #, got "a b"',
        ),
        # Addresses.
        (
            "server",
            "listen = 1935",
            'expected HOST:PORT, :PORT or [IPv6]:PORT, got "1935"; a port alone is written ":1935"',
        ),
        ("server", "listen = :1935, :1935", 'expected different addresses, got ":1935" twice'),
        ("server", "listen = [::1]:1, [0:0::1]:1", 'expected different addresses, got "[::1]:1" twice'),
        (
            "server",
            "listen = :1935, 127.0.0.1:1935",
            'expected addresses that do not overlap, got ":1935" and "127.0.0.1:1935"',
        ),
        (
            "server",
            "listen = 127.0.0.1:1935, :1935",
            'expected addresses that do not overlap, got "127.0.0.1:1935" and ":1935"',
        ),
        # Commas, comments and quotes.
        (
            "log",
            "level = info, debug",
            "expected debug, info, warning or error, got a list of 2: quote a value that contains commas",
        ),
        (
            "log",
            "level = info,",
            "expected debug, info, warning or error, got a list of 1: quote a value that contains commas",
        ),
        (
            "live",
            "default_stream_name = camera#1",
            'quote a value that contains "#", or put a space before a comment',
        ),
        (
            "server",
            "listen = :1935, :1936#both",
            'quote a value that contains "#", or put a space before a comment',
        ),
        (
            "live",
            "default_stream_name = #1",
            'expected a value, got a comment: quote a value that contains "#"',
        ),
        (
            "live",
            "default_stream_name =#",
            'expected a value, got a comment: quote a value that contains "#"',
        ),
        ("live", 'default_stream_name = "a', "expected a closing quote"),
        ("live", "default_stream_name = 'a\"", "expected a closing quote"),
        ("live", "default_stream_name = it's", "expected quotes around a whole value"),
        ("live", 'default_stream_name = "a" b', "expected quotes around a whole value"),
        ("live", 'default_stream_name = "a""b"', "expected quotes around a whole value"),
        (
            "live",
            'default_stream_name = """a"""',
            "expected a value on one line, in single or double quotes, got triple quotes",
        ),
        ("server", "listen = , :1935", "expected a value before the comma, got nothing"),
        ("server", "listen = ,", "expected a value before the comma, got nothing"),
        ("server", "listen = :1935,, :1936", "expected a value before the comma, got nothing"),
        # Names.
        ("server", "handshake_timeout = 5", 'unknown option, did you mean "handshake_timeout_s"?'),
        ("server", "Listen = :1935", 'unknown option, did you mean "listen"?'),
        ("server", "frobnicate = 5", "unknown option"),
        ("server", "__many__ = 5", "unknown option"),
        ("server", "gop_cache = no", "this option belongs in [live]"),
        ("live", "level = info", "this option belongs in [log]"),
        ("applications", "gop_cache = no", "this option belongs in [live] or in a [[name]] section"),
        ("applications", "level = info", "this option belongs in [log]"),
    ],
)
def test_a_wrong_option(section, line, what):
    name = line.partition("=")[0].strip()
    assert problem(f"# first\n\n[{section}]\n\n  {line}\n") == f"5: [{section}] {name}: {what}"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("gop_cache = 2", 'gop_cache: expected yes or no, got "2"'),
        ("gop_cash = no", 'gop_cash: unknown option, did you mean "gop_cache"?'),
        ("level = info", "level: this option belongs in [log]"),
        ("listen = a#b", 'listen: quote a value that contains "#", or put a space before a comment'),
    ],
)
def test_a_wrong_option_of_an_application(line, what):
    assert problem(f"[applications]\n[[live]]\n{line}\n") == f"3: [applications] [[live]] {what}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[sever]\nx = 1", '1: [sever]: unknown section, did you mean "server"?'),
        ("[Server]", '1: [Server]: unknown section, did you mean "server"?'),
        ("[zzz]", "1: [zzz]: unknown section"),
        ("[DEFAULT]\nlevel = info", "1: [DEFAULT]: unknown section"),
        ("[server]\n[[x]]\ny = 1", "2: [server] [[x]]: [server] has no sections inside"),
        ("[server]\n[[listen]]\ny = 1", "2: [server] [[listen]]: [server] has no sections inside"),
        ("[live]\n[[gop_cache]]", "2: [live] [[gop_cache]]: [live] has no sections inside"),
        (
            "[applications]\n[[live]]\n[[[x]]]",
            "3: [applications] [[live]] [[[x]]]: [applications] [[live]] has no sections inside",
        ),
        ("[[live]]\ngop_cache = no", "1: [[live]]: expected inside a section, got it outside"),
        ("[applications]\n[[[live]]]\nx = 1", "2: [[[live]]]: expected inside a section, got it outside"),
        ("[server]\n[log]\n[server]\nx = 1", "3: [server]: given twice (first in line 1): merge both"),
        (
            "[applications]\n[[a]]\n[[b]]\n[['a']]\nx = 1",
            "4: [applications] [[a]]: given twice (first in line 2): merge both",
        ),
        ("[log]\nlevel = info\nlevel = info", "3: [log] level: given twice (first in line 2)"),
        ("level = info", "1: level: this option belongs in [log]"),
        ("levle = info", '1: levle: unknown option, did you mean "level"?'),
        ("server = 1", '1: server: unknown option, did you mean "user"?'),
        ("[server", '1: expected a section header like [server] or [[name]], got "[server"'),
        ("[server]]", '1: expected a section header like [server] or [[name]], got "[server]]"'),
        ("[[server]", '1: expected a section header like [server] or [[name]], got "[[server]"'),
        ("[]", '1: expected a section header like [server] or [[name]], got "[]"'),
        ('["  "]', '1: expected a section header like [server] or [[name]], got "["  "]"'),
        ("[server] x = 1", '1: expected a section header like [server] or [[name]], got "[server] x = 1"'),
        ("[ser]ver]", '1: expected a section header like [server] or [[name]], got "[ser]ver]"'),
        ("[log]\nlevel", '2: expected a section header or "option = value", got "level"'),
        ("[log]\nlevel: info", '2: expected a section header or "option = value", got "level: info"'),
        ("[log]\n= info", '2: expected a section header or "option = value", got "= info"'),
        ('[log]\n"level" = info', '2: expected a section header or "option = value", got ""level" = info"'),
        ("[log]\n; level = info", '2: expected a comment to start with "#", got ";"'),
        ("[log]\nlevel = in\x00fo", "2: expected printable text, got a control character in this line"),
        ("[log]\rlevel = info\r", "1: expected printable text, got a control character in this line"),
        ("[log]\nlevel = " + "x" * 5000, "2: expected at most 4096 characters in a line, got 5008"),
        (
            "[applications]\n[[live*]]",
            '2: [applications] [[live*]]: expected "*" alone ([[*]] takes all other connections) or a name without it',
        ),
        (
            "[applications]\n[[/live]]",
            '2: [applications] [[/live]]: expected "/" only between the parts of an application\'s name',
        ),
        (
            "[applications]\n[[live/]]",
            '2: [applications] [[live/]]: expected "/" only between the parts of an application\'s name',
        ),
        (
            "[applications]\n[[a//b]]",
            '2: [applications] [[a//b]]: expected "/" only between the parts of an application\'s name',
        ),
        (
            f"[applications]\n[[{'a' * 256}]]",
            f"2: [applications] [[{'a' * 256}]]: expected at most 255 characters in the name of an application",
        ),
        (
            "[applications]\n[[a b]]",
            "2: [applications] [[a b]]: expected the name of an application without spaces, quotes, brackets, ? and #",
        ),
    ],
)
def test_a_wrong_structure(text, what):
    assert problem(text) == what


def test_the_name_that_a_spec_uses_for_any_name_is_no_application():
    assert problem("[applications]\n[[__many__]]\n").startswith("2: [applications] [[__many__]]: this name is reserved")


@pytest.mark.parametrize("header", ["[bad", "[lo\0g]", "[server]", "[sever]", "[sever]\n[[y]]", "[[[log]]]\nx = 1\n[ba]d"])
def test_below_a_wrong_header_nothing_is_reported_or_taken_for_the_section_before(header):
    found = problems(f"[server]\nlisten = :1\n{header}\nlisten = wrong\nother = 2\n[[x]]\ny = 3\n[log]\nlevel = loud\n")
    lines = [line.split(":")[1] for line in found]
    assert lines[0] == "3"
    assert len(lines) == 2 + header.count("[ba]d")
    assert "[log] level" in found[-1]


def test_every_problem_is_reported_in_the_order_of_the_lines():
    found = problems(
        "[log]\nlevel = loud\n[sever]\n[live]\ngop_cache = perhaps\nnothing\nkeyframe_wait_s = x#y\npacing_limit_ms = 0\n",
        overrides={("server", "listen"): [":x"], ("server", "chunk_size_bytes"): "1", ("live", "pacing"): "2"},
    )
    assert [line.split(": ")[0] for line in found] == [
        "rtmpd.ini:2",
        "rtmpd.ini:3",
        "rtmpd.ini:5",
        "rtmpd.ini:6",
        "rtmpd.ini:7",
        "rtmpd.ini:8",
        "--listen",
        "--chunk-size",
        "[live] pacing",
    ]


def test_what_a_file_holds_can_not_control_the_terminal():
    assert problem("[log]\nlevel = \u202einfo\u2028x") == (
        '2: [log] level: expected debug, info, warning or error, got "\\u202einfo\\u2028x"'
    )


def test_a_long_value_is_not_shown_whole():
    assert len(problem("[log]\nlevel = " + "x" * 4000)) < 200


def test_lines_are_counted_as_editors_count_them():
    text = "# \u2028 \x0b \x0c \x85\n[log]\nlevel = loud\n"
    assert problem(text).startswith("3: ")


def test_a_list_for_which_configobj_needs_exponential_time():
    assert "quote" in problem("[server]\nlisten = " + "a, " * 1000 + '"')
    assert "expected quotes around" in problem("[server]\nlisten = " + '"a", ' * 600 + 'x"')


@pytest.mark.parametrize("separator", [",", " , ", ",   "])
def test_a_long_list_is_no_trouble(separator):
    listen = separator.join(f'"[::1]:{port}"' if port % 2 else f":{port}" for port in range(1, 201))
    assert len(load_text(f"[server]\nlisten = {listen}").server.listen) == 200


class TestOverrides:
    def test_overrides_take_precedence_over_the_text(self):
        config = load_text(
            "[server]\nlisten = :1\nchunk_size_bytes = 200\n[log]\nlevel = error\n",
            overrides={("server", "listen"): [":2", ":3"], ("log", "level"): "debug"},
        )
        assert [str(address) for address in config.server.listen] == [":2", ":3"]
        assert config.log.level == "debug"
        assert config.server.chunk_size_bytes == 200

    def test_one_address_need_not_be_a_list(self):
        assert load_text("", overrides={("server", "listen"): ":0"}).server.listen == (ListenAddress("", 0),)

    @pytest.mark.parametrize(
        ("section", "option", "texts", "values"),
        [
            ("server", "listen", [":1,:2"], [":1", ":2"]),
            ("relay", "relay_to", ["rtmp://a/x/1, rtmp://b/x/2", "rtmp://c/x/3"], ["a", "b", "c"]),
            ("auth", "auth_tokens", ["live/a=x,live/b=y"], ["live/a=x", "live/b=y"]),
            ("auth", "auth_tokens", ['"live/a=x,y",live/b=z'], ["live/a=x,y", "live/b=z"]),
            ("auth", "auth_tokens", ["live/a=x\"y,live/b='z"], ['live/a=x"y', "live/b='z"]),
            ("hooks", "hook_webhooks", ["publish_start=http://a/,publish_stop=http://b/"], ["publish_start", "publish_stop"]),
        ],
    )
    def test_a_flag_is_split_at_commas_like_the_option(self, section, option, texts, values):
        found = getattr(getattr(load_text("", overrides={(section, option): texts}), section), option)
        shown = {
            "listen": str,
            "relay_to": lambda url: url.host,
            "auth_tokens": lambda each: f"{each.name}={each.secret.reveal()}",
            "hook_webhooks": lambda hook: hook.pattern,
        }[option]
        assert [shown(each) for each in found] == values

    def test_a_flag_whose_value_contains_a_comma_must_be_quoted(self):
        (found,) = problems("", overrides={("auth", "auth_tokens"): ["live/a=x,y"]})
        assert found == (
            '--auth-token: expected APPLICATION/NAME=SECRET, got a hidden value, number 2: there is no "=" in it'
            ": quote a value that contains commas"
        )

    def test_overrides_do_not_hide_problems_of_the_text(self):
        assert problems("[log]\nlevel = loud\n", overrides={("log", "level"): "info"}) == [
            'rtmpd.ini:2: [log] level: expected debug, info, warning or error, got "loud"'
        ]

    @pytest.mark.parametrize(
        ("option", "value", "what"),
        [
            (("server", "listen"), [":1", ":1"], '--listen: expected different addresses, got ":1" twice'),
            (("server", "listen"), [":1,x"], "--listen: expected HOST:PORT"),
            (("log", "level"), "loud", '--log-level: expected debug, info, warning or error, got "loud"'),
            (("server", "chunk_size_bytes"), "nan", "--chunk-size: expected a size from 128 to 16777215"),
            (("live", "pacing"), "", "[live] pacing: expected yes or no, got nothing"),
        ],
    )
    def test_overrides_are_checked_like_the_text(self, option, value, what):
        (found,) = problems("", overrides={option: value})
        assert found.startswith(what)


class TestFiles:
    def test_a_file_is_loaded(self, tmp_path):
        path = tmp_path / "rtmpd.ini"
        path.write_bytes(b"\xef\xbb\xbf[live]\r\ndefault_stream_name = \xc3\xbc\r\n")
        assert load_file(path).live.default_stream_name == "ü"
        assert load_file(str(path), {("log", "level"): "error"}).log.level == "error"

    def failure(self, path, **arguments):
        with pytest.raises(ConfigError) as raised:
            load_file(path, **arguments)
        return raised.value.problems

    def test_a_file_is_named_as_it_was_given(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.ini").write_text("[log]\nlevel = x\n")
        assert self.failure("./a.ini")[0].startswith("./a.ini:2: [log] level: ")

    def test_a_missing_file(self, tmp_path):
        path = tmp_path / "none.ini"
        assert self.failure(path) == [f"{path}: can't be read: No such file or directory"]

    def test_a_missing_file_does_not_hide_wrong_flags(self, tmp_path):
        found = self.failure(tmp_path / "none.ini", overrides={("log", "level"): "x"})
        assert [line.split(": ")[0] for line in found] == [str(tmp_path / "none.ini"), "--log-level"]

    def test_a_directory(self, tmp_path):
        assert self.failure(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]

    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
        # Not with chmod: the tests may run as root.
        def refuse(*_arguments):
            raise PermissionError(errno.EACCES, "nothing to be seen")

        monkeypatch.setattr(os, "open", refuse)
        assert self.failure(tmp_path / "x") == [f"{tmp_path}/x: can't be read: Permission denied"]

    def test_a_pipe_is_read_and_one_without_a_writer_is_not_waited_for(self, tmp_path):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        assert self.failure(path) == [f"{path}: can't be read: the file is a pipe without a writer"]
        reading, writing = os.pipe()
        try:
            os.write(writing, b"[log]\nlevel = error\n")
            os.close(writing)
            assert load_file(f"/dev/fd/{reading}").log.level == "error"
            # A reload finds the pipe at its end.
            assert self.failure(f"/dev/fd/{reading}") == [
                f"/dev/fd/{reading}: can't be read: the file is a pipe without a writer"
            ]
        finally:
            os.close(reading)

    def test_a_name_that_no_file_can_have(self):
        assert self.failure("a\0b") == ["a\\x00b: embedded null byte"]

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"[log]\n# \xe4\n", "can't be read: line 2 is not UTF-8 (byte 0xe4)"),
            ("[log]\n".encode("utf-16"), "can't be read: line 1 is not UTF-8 (byte 0xff)"),
            (b"#" * (1 << 20) + b"\n", "can't be read: the file is larger than 1048576 bytes"),
        ],
    )
    def test_files_that_are_no_configuration(self, tmp_path, data, what):
        path = tmp_path / "rtmpd.ini"
        path.write_bytes(data)
        assert self.failure(path) == [f"{path}: {what}"]


def test_options_that_need_a_restart_are_named():
    old = load_text("")
    new = load_text("[server]\nlisten = :1\nchunk_size_bytes = 128\nread_timeout_s = 1\n[log]\nlevel = error\n")
    assert restart_needed(old, new) == ["[server] chunk_size_bytes"]
    assert restart_needed(new, new) == []


def test_an_application_costs_as_many_conversions_as_it_sets_options(monkeypatch):
    converted = []
    check = Validator.check
    monkeypatch.setattr(Validator, "check", lambda *args, **kw: converted.append(args[1]) or check(*args, **kw))
    load_text("[applications]\n")
    once = len(converted)
    load_text("[applications]\n" + "".join(f"[[a{number}]]\ngop_cache = no\n" for number in range(100)))
    assert len(converted) - 2 * once == 100
