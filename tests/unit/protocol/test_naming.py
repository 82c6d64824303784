"""The stream key from app, tcUrl and stream name, for every way in which clients split a URL."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.protocol.naming import (
    MAX_NAME_LENGTH,
    NameProblem,
    StreamName,
    can_be_name,
    decoded,
    is_printable,
    join_key,
    needs_escapes,
    resolve,
    split_path,
    split_query,
    without_secrets,
)


def test_app_and_name_make_a_key():
    assert resolve("live", "rtmp://host/live", "key", "stream") == StreamName("live/key", {})


@pytest.mark.parametrize(
    ("app", "tc_url", "name", "key"),
    [
        ("live", "", "key", "live/key"),
        ("", "rtmp://host/live", "key", "live/key"),
        ("", "rtmp://host:1935/live/sub/", "key", "live/sub/key"),
        ("", "'rtmp://host/live'", "key", "live/key"),
        ("", '"rtmp://host/live"', "key", "live/key"),
        ("", "rtmps://[2001:db8::1]:443/live", "key", "live/key"),
        ("/", "rtmp://host/live", "key", "live/key"),
        ("", "", "key", "key"),
        ("", "rtmp://host", "key", "key"),
        ("", "rtmp://host/", "key", "key"),
        ("", "host/live", "key", "key"),
        ("live", "rtmp://host/other", "key", "live/key"),
    ],
)
def test_row_12_tc_url_may_be_missing_or_quoted_and_stands_in_for_an_app(app, tc_url, name, key):
    assert resolve(app, tc_url, name, "stream").key == key


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("live/sub", "key"),
        ("live/sub/", "key"),
        ("/live/sub", "/key"),
        ("live//sub", "//key/"),
        ("live", "sub/key"),
        ("live/", "/sub/key"),
        ("live/sub/key", "key"),
    ],
)
def test_row_13_slashes_are_normalised_wherever_the_url_was_cut(app, name):
    expected = "live/sub/key/key" if app == "live/sub/key" else "live/sub/key"
    assert resolve(app, "", name, "stream").key == expected


@pytest.mark.parametrize(
    ("app", "tc_url", "name"),
    [
        ("live", "rtmp://host/live", "key?user=a&token=b"),
        ("live?user=a&token=b", "rtmp://host/live", "key"),
        ("live", "rtmp://host/live?user=a&token=b", "key"),
        ("live?user=a", "rtmp://host/live", "key?token=b"),
        ("live?user=a", "rtmp://host/live?token=b", "key"),
        ("live/?user=a", "'rtmp://host/live?user=a'", "/key?token=b"),
        ("", "rtmp://host/live?user=a", "key?token=b"),
    ],
)
def test_row_14_the_query_may_hang_on_any_part(app, tc_url, name):
    assert resolve(app, tc_url, name, "stream") == StreamName("live/key", {"user": "a", "token": "b"})


def test_row_14_the_names_query_wins_over_the_apps_and_that_over_the_tc_urls():
    found = resolve("live?a=app&b=app", "rtmp://host/live?a=url&b=url&c=url", "key?a=name", "stream")
    assert found == StreamName("live/key", {"a": "name", "b": "app", "c": "url"})


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("", {}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("=b", {"": "b"}),
        ("a=1&a=2", {"a": "2"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1?b=2", {"a": "1?b=2"}),
        ("a=%C3%A9+x%26", {"a": "é x&"}),
        ("a=%FF", {"a": "�"}),
        ("a=%zz%", {"a": "%zz%"}),
        ("&&a=1&", {"a": "1"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("clientConfigId=7", {"clientConfigId": "7"}),
    ],
)
def test_row_14_queries_are_parsed_as_browsers_write_them(query, parameters):
    assert resolve("live", "", f"key?{query}", "stream") == StreamName("live/key", parameters)


def test_row_14_a_query_is_bounded():
    found = resolve("live", "", "key?" + "&".join(f"p{i}=1" for i in range(1000)), "stream")
    assert list(found.parameters) == [f"p{i}" for i in range(64)]
    assert len(resolve("live", "", "key?a=" + "x" * 100_000, "stream").parameters["a"]) < 8192


@pytest.mark.parametrize("name", ["", "/", "//", "?", "?a=1", "/?a=1"])
def test_row_15_an_empty_name_is_the_default_and_keeps_its_query(name):
    parameters = {"a": "1"} if "a" in name else {}
    assert resolve("live", "", name, "stream") == StreamName("live/stream", parameters, defaulted=True)
    assert resolve("", "", name, "stream") == StreamName("stream", parameters, defaulted=True)


@pytest.mark.parametrize("name", ["", "/", "//", "?", "?a=1", "/?a=1"])
@pytest.mark.parametrize(
    ("app", "tc_url"),
    [("live/cam", ""), ("live/cam/", "rtmp://h/live/cam/"), ("", "rtmp://h/live/cam"), ("live/_definst_/cam", "")],
)
def test_row_15_an_empty_name_with_a_path_in_the_app_is_that_path(app, tc_url, name):
    assert resolve(app, tc_url, name, "stream") == StreamName("live/cam", {"a": "1"} if "a" in name else {})


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("live/_definst_", "cam"),
        ("live/_definst_/", "/cam"),
        ("live", "_definst_/cam"),
        ("", "live/_definst_/cam"),
        ("live/_definst_/cam", ""),
    ],
)
def test_row_74_the_default_instance_is_no_part_of_the_key(app, name):
    assert resolve(app, "", name, "stream") == StreamName("live/cam", {})


def test_row_74_the_default_instance_alone_is_the_app():
    assert resolve("live/_definst_", "", "", "").key == "live"
    assert resolve("live", "", "_definst_", "stream") == StreamName("live/stream", {}, defaulted=True)
    assert resolve("_definst_", "", "cam", "stream").key == "_definst_/cam"


@pytest.mark.parametrize("app", ["live", "", "live/cam", "rtmp://host/live", "RTMPS://u:p@host:443/live/_definst_/"])
@pytest.mark.parametrize("url", ["rtmp://host/live/cam", "rtmps://u:p@host:1/live//cam/", "rtmpt://host/live/_definst_/cam"])
def test_row_75_a_whole_url_as_stream_name_is_its_path(app, url):
    assert resolve(app, "", f"{url}?a=1", "stream") == StreamName("live/cam", {"a": "1"})


def test_row_75_the_url_of_an_application_names_no_stream():
    assert resolve("live", "", "rtmp://host/live", "stream") == StreamName("live/stream", {}, defaulted=True)


@pytest.mark.parametrize("url", ["rtmp://host/other/cam", "rtmp://host/liver/cam", "rtmp://host", "rtmp://live/cam"])
def test_row_75_the_url_of_another_application_is_refused(url):
    with pytest.raises(NameProblem, match="is a URL of another application"):
        resolve("live", "", url, "stream")


@pytest.mark.parametrize(
    ("app", "tc_url", "key"),
    [
        ("live/cam?", "rtmp://h/live/cam?", "live/cam"),
        ("live/cam/?", "", "live/cam"),
        ("live?", "", "live/stream"),
        ("live/cam", "rtmp://h/live/cam?", "live/cam"),
        ("", "'rtmp://h/live/cam?'", "live/cam"),
    ],
)
def test_row_76_a_query_may_be_the_name_if_the_question_mark_is_at_the_end_of_the_app(app, tc_url, key):
    found = resolve(app, tc_url, "user=a&pass=b", "stream")
    assert (found.key, found.parameters) == (key, {"user": "a", "pass": "b"})


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("live", "user=a&pass=b"),
        ("live", "cam&token=x"),
        ("live", "cam/token=x"),
        ("live", "cam%3Ftoken%3Dx"),
        ("live", "cam#token=x"),
        ("live/token=x", "cam"),
        ("live", "rtmp://h/live/cam&token=x"),
    ],
)
def test_row_76_parameters_without_a_question_mark_are_refused(app, name):
    with pytest.raises(NameProblem, match=r'a parameter with a secret, but no "\?" before it'):
        resolve(app, "", name, "stream")


@pytest.mark.parametrize("text", ["abc", "a+b", "a%41", "100%", "a/b", "a=b", "a?b", "%C3%BC"])
def test_a_value_that_urls_can_carry_is_decoded_the_same_on_both_sides(text):
    assert not needs_escapes(text)
    assert resolve("live", "", f"cam?token={text}", "").parameters == {"token": decoded(text)}


@pytest.mark.parametrize("text", ["a b", "a&b", "a#b", 'a"b', "a'b", "ü", "%FF", "a<b", "a\\b", "{a}"])
def test_a_value_that_urls_can_not_carry(text):
    assert needs_escapes(text)


def test_escapes_that_are_not_utf_8_stay():
    assert decoded("%FF") == "%FF"


@pytest.mark.parametrize("text", ["abc", "a&b", "a/b", "a=b"])
def test_texts_that_can_be_names(text):
    assert can_be_name(text)


@pytest.mark.parametrize("text", ["a?b", "a#b", "a b", "/a", "token=a", "rtmp://h/b/c", "_definst_"])
def test_texts_that_can_not_be_names(text):
    assert not can_be_name(text)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("", ("", "")),
        ("/live", ("live", "")),
        ("/live/", ("live", "")),
        ("/live/cam", ("live", "cam")),
        ("//live/sub/cam", ("live/sub", "cam")),
        ("/live//cam", ("live", "cam")),
        ("/live//a/b", ("live", "a/b")),
        ("/live/sub//a/b//c/", ("live/sub", "a/b/c")),
    ],
)
def test_a_double_slash_ends_the_application(path, split):
    assert split_path(path) == split


def test_row_15_a_name_without_an_app_is_a_key():
    assert resolve("", "", "key", "stream").key == "key"


def test_only_the_first_question_mark_splits():
    assert split_query("a?b?c") == ("a", "b?c")
    assert split_query("a") == ("a", "")


def test_joining_leaves_single_slashes():
    assert join_key("/a//b/", "//c/") == "a/b/c"
    assert join_key("", "") == ""


@pytest.mark.parametrize("text", ["", "live/key", "é/日本", "a b", "x" * MAX_NAME_LENGTH])
def test_printable_names(text):
    assert is_printable(text)


@pytest.mark.parametrize("text", ["a\nb", "a\0", "\x1b[2J", "a\x7f", "a\x85", "a\x9b", "x" * (MAX_NAME_LENGTH + 1)])
def test_unprintable_names(text):
    assert not is_printable(text)


# What AMF strings decode to, lone surrogates among them.
texts = st.text(st.characters() | st.sampled_from("/?&=%;'\"#:\udce9"), max_size=60)


@settings(deadline=None, max_examples=300)
@given(texts, texts, texts)
def test_any_texts_make_a_key_without_queries_or_empty_parts(app, tc_url, name):
    try:
        key, parameters, _ = resolve(app, tc_url, name, "stream")
    except NameProblem:
        return
    assert "?" not in key
    assert "" not in key.split("/")
    assert resolve(key, "", "", "").key == key
    assert len(parameters) <= 192


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtmp://ann:secret@host:1935/live/x?token=1", "rtmp://host:1935/live/x"),
        ("'rtmp://host/live'", "rtmp://host/live"),
        ("rtmp://a@b:c@host", "rtmp://host"),
        ("rtmp://host/a@b", "rtmp://host/a@b"),
        ("live?secret", "live"),
        ("", ""),
    ],
)
def test_a_url_without_secrets(url, shown):
    assert without_secrets(url) == shown
