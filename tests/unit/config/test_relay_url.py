import re

import pytest

from rtmpd.config.loader import load_text
from rtmpd.config.relay_url import RelayUrl, labels
from rtmpd.config.secret import MASK
from rtmpd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("rtmp://host/live/a", "rtmp://host:1935/live/a"),
        ("rtmp://host:1936/live/a", "rtmp://host:1936/live/a"),
        ("rtmp://host/live/{name}", "rtmp://host:1935/live/cam"),
        ("rtmp://host/{app}/{name}", "rtmp://host:1935/studio/one/cam"),
        ("rtmp://host/{app}-{name}/x_{name}", "rtmp://host:1935/studio/one-cam/x_cam"),
        ("rtmp://host/live", "rtmp://host:1935/live/cam"),
        ("rtmp://host/live/", "rtmp://host:1935/live/cam"),
        ("rtmp://host//a/b//c", "rtmp://host:1935/a/b/c"),
        ("rtmp://host/a//b/c", "rtmp://host:1935/a//b/c"),
        ("rtmp://host/a/{app}//b/{name}/c/?d", "rtmp://host:1935/a/studio/one//b/cam/c?d"),
        ("rtmp://host/live/a?k={name}&l=/", "rtmp://host:1935/live/a?k=cam&l=/"),
        ("rtmp://host/live/a#b", "rtmp://host:1935/live/a#b"),
        ("rtmp://[2001:db8::1]:1/live/a", "rtmp://[2001:db8::1]:1/live/a"),
        ("rtmp://user:p%40ss@host/live/a", "rtmp://user:p%40ss@host:1935/live/a"),
        ("RTMP://Host/Live/A", "rtmp://host:1935/Live/A"),
        ("rtmps://host/live/a", "rtmps://host:443/live/a"),
        ("RTMPS://user:x@host:1936/live", "rtmps://user:x@host:1936/live/cam"),
        ("rtmp://192.0.2.1/live/a", "rtmp://192.0.2.1:1935/live/a"),
    ],
)
def test_urls_and_their_fields(text, expanded):
    assert RelayUrl.parse(text).expand("studio/one", "cam") == expanded


@pytest.mark.parametrize("name", ["{app}", "a b", "a\\b", "ä", "a{b"])
def test_names_of_streams_are_inserted_unchanged(name):
    assert RelayUrl.parse("rtmp://h/{app}/{name}").expand("{name}", name) == f"rtmp://h:1935/{{name}}/{name}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the URL does not begin with rtmp:// or rtmps://"),
        ("host/live/a", "the URL does not begin with rtmp:// or rtmps://"),
        ("http://host/live/sEcret", "the URL does not begin with rtmp:// or rtmps://"),
        ("rtmpt://host/live/sEcret", "the URL does not begin with rtmp:// or rtmps://"),
        ("rtmp://", "the host or port is wrong"),
        ("rtmp:///live/sEcret", "the host or port is wrong"),
        ("rtmp://host:0/live/sEcret", "the host or port is wrong"),
        ("rtmp://host:99999/live/sEcret", "the host or port is wrong"),
        ("rtmp://host:sEcret/live/a", "the host or port is wrong"),
        ("rtmp://[::1/live/sEcret", "the host or port is wrong"),
        ("rtmp://[sEcret::1]/live/a", "the host or port is wrong"),
        ("rtmp://a..b/live/sEcret", "the host or port is wrong"),
        ("rtmp://host", "the URL names no application"),
        ("rtmp://host/", "the URL names no application"),
        ("rtmp://host/live/sEcret{nmae}", "the fields are {app} and {name}, not {nmae}"),
        ("rtmp://host/live/{name", "the fields are {app} and {name}, not {"),
        ("rtmp://host/live/{}", "the fields are {app} and {name}, not {}"),
        ("rtmp://{name}/live/sEcret", "fields are only possible in the path and the query"),
        ("rtmp://{app}:x@host/live/sEcret", "fields are only possible in the path and the query"),
        ("rtmp://host/live/sEcret,rtmp://b/live/x", "the URL contains a second one after a comma: quote each URL by itself"),
        ("rtmp://host/live/sE cret", "the URL contains spaces or control characters"),
        ("rtmp://host/live/" + "s" * 3000, "the URL is longer than 2048 characters"),
        (f"rtmp://host/live/{MASK}", "the URL contains the mask of a printed configuration"),
        ("env:THERE_IS_NO_SUCH", "the environment variable is not set"),
    ],
)
def test_problems_contain_nothing_that_may_be_secret(text, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        RelayUrl.parse(text)
    assert str(raised.value) == problem
    assert "sE" not in problem


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("rtmp://a.example/live2/abcd-efgh", f"rtmp://a.example:1935/live2/{MASK}"),
        ("rtmp://a.example/app/{name}", "rtmp://a.example:1935/app/{name}"),
        ("rtmp://a.example/app", "rtmp://a.example:1935/app/{name}"),
        ("rtmp://a.example/app/{app}_{name}", "rtmp://a.example:1935/app/{app}_{name}"),
        ("rtmp://a.example/app/key{name}", f"rtmp://a.example:1935/app/{MASK}"),
        ("rtmp://a.example/app/{name}?token=x", f"rtmp://a.example:1935/app/{{name}}?{MASK}"),
        ("rtmp://user:pass@a.example/app/{name}", "rtmp://a.example:1935/app/{name}"),
        ("rtmp://a.example/app//part/of/key", f"rtmp://a.example:1935/app/{MASK}"),
        ("rtmp://[::1]/app/x", f"rtmp://[::1]:1935/app/{MASK}"),
    ],
)
def test_the_label_shows_no_name_that_may_be_a_key_no_query_and_no_password(text, label):
    assert RelayUrl.parse(text).label == label


def test_a_url_never_shows_its_secrets():
    url = RelayUrl.parse("rtmp://user:passw0rd@host/live/k3y?t0ken=1")
    assert str(url) == f"rtmp://{MASK}@host:1935/live/{MASK}?{MASK}"
    for secret in ("passw0rd", "k3y", "t0ken"):
        assert secret not in repr(url)


def test_a_url_can_be_in_a_file(tmp_path):
    path = tmp_path / "url"
    path.write_text("rtmp://host/live/k3y\n")
    url = RelayUrl.parse(f"file:{path}")
    assert url.expand("a", "b") == "rtmp://host:1935/live/k3y"
    assert str(url) == f"file:{path}"


def test_destinations_that_look_the_same_are_numbered():
    urls = tuple(RelayUrl.parse(f"rtmp://host/live/{key}") for key in "abc")
    assert list(labels(urls).values()) == [urls[0].label, f"{urls[0].label} (2)", f"{urls[0].label} (3)"]


def test_secrets_in_the_answer_of_a_server_are_masked():
    url = RelayUrl.parse("rtmp://host/live/k3y?t=1")
    assert url.hide("live/k3y is taken (k3y?t=1), k3ys not", "a", "b") == f"live/{MASK} is taken ({MASK}?{MASK}), k3ys not"
    open_url = RelayUrl.parse("rtmp://host/live/{name}")
    assert open_url.hide("live/cam is taken", "a", "cam") == "live/cam is taken"


# In a configuration -----------------------------------------------------------------------------------------------------


def test_several_destinations_and_one_application_with_its_own():
    config = load_text(
        "[relay]\nrelay_to = rtmp://a/live/{name}, rtmp://b/live/{name}\n"
        '[applications]\n[[one]]\nrelay_to = rtmp://c/x/{name}\n[[two]]\n[[three]]\nrelay_to = ""\n'
    )
    assert [url.host for url in config.relay.relay_to] == ["a", "b"]
    assert [url.host for url in config.applications["one"].relay.relay_to] == ["c"]
    assert config.applications["two"].relay == config.relay
    assert config.applications["three"].relay.relay_to == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("rtmpt://a/b/c", "hidden value: the URL does not begin with rtmp:// or rtmps://"),
        ("rtmp://a/b/c, x", "hidden value, number 2: the URL does not begin with rtmp:// or rtmps://"),
    ],
)
def test_a_wrong_url_is_an_error_at_start(line, problem):
    with pytest.raises(ConfigError) as raised:
        load_text(f"[relay]\nrelay_to = {line}\n", "x.ini")
    assert raised.value.problems == [
        f"x.ini:2: [relay] relay_to: expected rtmp[s]://HOST[:PORT]/APPLICATION/NAME, got a {problem}"
    ]


def test_the_same_destination_twice_is_an_error():
    with pytest.raises(ConfigError, match="twice"):
        load_text("[relay]\nrelay_to = rtmp://a/b/c, rtmp://A:1935/b//c\n")


def test_rtmps_is_shown_as_such():
    url = RelayUrl.parse("rtmps://user:sEcret@host/live/key?token=sEcret")
    assert str(url) == f"rtmps://{MASK}@host:443/live/{MASK}?{MASK}"
    assert url.label == f"rtmps://host:443/live/{MASK}?{MASK}"
