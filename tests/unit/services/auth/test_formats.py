from __future__ import annotations

import json
from urllib.parse import parse_qsl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtmpd.authorization import Action, ClientFacts, Request
from rtmpd.config.relay_url import RelayUrl
from rtmpd.http.client import Response
from rtmpd.live.grant import Grant
from rtmpd.services.auth.formats import DESTINATIONS, FORMATS, LIMITS, CallbackError, parse_grant
from rtmpd.util.stream_key import StreamKey

KEY = StreamKey("live/cam")
NO_URLS = f"relay_to in the response is not a URL, or a list of at most {DESTINATIONS} URLs"
PLAYERS = "limits.players_per_stream_limit in the response"
JSON, NGINX = FORMATS["json"], FORMATS["nginx"]
CLIENT = ClientFacts("7", "rtmps", "OBS & Co", "rtmp://host/live", "http://page/?a=b", "swf")


def request(action=Action.PUBLISH, arguments=None, **parameters):
    return Request(action, "[2001:db8::1]:5000", "2001:db8::1", KEY, parameters, client=CLIENT, arguments=arguments or {})


def granted(action=Action.PUBLISH, **members):
    return parse_grant(json.dumps(members).encode(), action, KEY)


def problem(**members):
    with pytest.raises(CallbackError) as raised:
        granted(**members)
    assert "s3cret" not in str(raised.value)
    return str(raised.value)


def parsed(body, action=Action.PUBLISH):
    """Return a grant, or the text of the error."""
    try:
        return parse_grant(body, action, KEY)
    except CallbackError as error:
        return str(error)


# JSON -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"ok", b"[1]", b"{}", b' {"other": 1} ', b'{"stream": null, "limits": null}'])
def test_a_body_without_known_members_grants_the_stream(body):
    assert parse_grant(body, Action.PUBLISH, KEY) == Grant(KEY)


def test_all_terms_are_read():
    found = granted(
        stream="sub/shown",
        relay_to=["rtmp://a/app/s3cret", "RTMPS://b/app/{name}", "rtmp://a/app/s3cret"],
        record=False,
        expires_s=90,
        limits={"publish_bitrate_limit": "2500k", "publish_bitrate_action": "warn", "players_per_stream_limit": 3},
    )
    assert found == Grant(
        StreamKey("live/sub/shown"),
        (RelayUrl.parse("rtmp://a/app/s3cret"), RelayUrl.parse("rtmps://b/app/{name}")),
        False,
        {"publish_bitrate_limit": 2_500_000, "publish_bitrate_action": "warn", "players_per_stream_limit": 3},
        90.0,
    )
    text = (
        "relay_to rtmp://a:1935/app/********, relay_to rtmps://b:443/app/{name}, not recorded, publish_bitrate_limit 2500000, "
    )
    assert str(found) == f"{text}publish_bitrate_action warn, players_per_stream_limit 3, expires_s 90"
    assert "s3cret" not in repr(found)
    assert str(Grant(KEY)) == ""


def test_one_url_is_a_list_of_one():
    assert granted(relay_to="rtmp://a/app").relay_to == (RelayUrl.parse("rtmp://a/app/{name}"),)


@pytest.mark.parametrize(("seconds", "expected"), [(1, 1.0), (0.2, 1.0), (2.5, 2.5), (366 * 86400, 366 * 86400.0)])
def test_the_shortest_time_is_a_second(seconds, expected):
    assert granted(expires_s=seconds).expires_s == expected


def test_a_limit_is_written_as_in_the_configuration_or_as_a_number():
    assert granted(limits={"publish_bitrate_limit": 2.5e6}).limits == {"publish_bitrate_limit": 2_500_000}
    assert granted(limits={"publish_bitrate_grace_s": "1m"}).limits == {"publish_bitrate_grace_s": 60.0}
    assert granted(limits={"players_per_stream_limit": 0}).limits == {"players_per_stream_limit": 0}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"stream": "a?b"}, "the name in the response can't be the name of a stream"),
        ({"stream": 7}, "the name in the response can't be the name of a stream"),
        ({"name": "/s3cret"}, "the name in the response can't be the name of a stream"),
        ({"relay_to": 7}, NO_URLS),
        (
            {"relay_to": ["rtmp://a/b", None]},
            NO_URLS,
        ),
        (
            {"relay_to": [f"rtmp://a/{number}/x" for number in range(DESTINATIONS + 1)]},
            NO_URLS,
        ),
        ({"relay_to": "file:/etc/s3cret"}, "relay_to in the response is not a URL that begins with rtmp:// or rtmps://"),
        ({"relay_to": "env:HOME"}, "relay_to in the response is not a URL that begins with rtmp:// or rtmps://"),
        ({"relay_to": "http://a/s3cret"}, "relay_to in the response is not a URL that begins with rtmp:// or rtmps://"),
        ({"relay_to": "rtmp://a:0/s3cret/s3cret"}, "relay_to in the response can't be used: the host or port is wrong"),
        ({"relay_to": "rtmp://a"}, "relay_to in the response can't be used: the URL names no application"),
        ({"record": "yes"}, "record in the response is not true or false"),
        ({"record": 1}, "record in the response is not true or false"),
        ({"expires_s": 0}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": -1}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": 1e9}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": float("nan")}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": float("inf")}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": 10**400}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": "60"}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"expires_s": True}, "expires_s in the response is not a number above 0, up to 3.16224e+07"),
        ({"limits": [1]}, "limits in the response is not an object with options of [limits]"),
        (
            {"limits": {"publish_bitrat_limit": 1}},
            f'limits in the response has "publish_bitrat_limit"; possible are {", ".join(LIMITS)}',
        ),
        (
            {"limits": {"players_per_stream_limit": -1}},
            f'{PLAYERS} is wrong: expected 0 (no limit) or a whole number from 1 to 1000000, got "-1"',
        ),
        (
            {"limits": {"players_per_stream_limit": True}},
            f"{PLAYERS} is not a number or a text, as in the configuration",
        ),
        (
            {"limits": {"publish_bitrate_limit": [1]}},
            "limits.publish_bitrate_limit in the response is not a number or a text, as in the configuration",
        ),
        (
            {"limits": {"publish_bitrate_action": "kill"}},
            'limits.publish_bitrate_action in the response is wrong: expected warn or disconnect, got "kill"',
        ),
    ],
)
def test_a_member_with_a_wrong_value_denies_and_is_named(members, expected):
    assert problem(**members) == expected


@pytest.mark.parametrize(
    "body", [b'{"stream": ', b"{" * 8000, b'{"a": ' * 4000, b"{\xff}", b'{"expires_s": ' + b"9" * 7000 + b"}"]
)
def test_broken_json_denies(body):
    with pytest.raises(CallbackError, match="the response is broken JSON"):
        parse_grant(body, Action.PUBLISH, KEY)


def test_a_response_is_used_whole_or_not_at_all():
    assert JSON.grant(Response(204), request(Action.PLAY), KEY) == Grant(KEY)
    assert JSON.grant(Response(302, {"Location": "other"}), request(Action.PLAY), KEY) is None
    assert JSON.grant(Response(404), request(Action.PLAY), KEY) is None
    with pytest.raises(CallbackError, match="the response broke off"):
        JSON.grant(Response(200, defect="broke off"), request(Action.PLAY), KEY)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = ("stream", "name", "relay_to", "record", "expires_s", "limits")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(MEMBERS), json_values), st.sampled_from([Action.PUBLISH, Action.PLAY]))
def test_any_members_grant_something_valid_or_deny(members, action):
    found = parsed(json.dumps(members).encode(), action)
    if isinstance(found, str):
        assert found.isprintable()
        return
    assert found.key.startswith("live/")
    assert found.record in (None, True, False)
    assert found.expires_s == 0 or 1 <= found.expires_s <= 366 * 86400
    assert str(found).isprintable()


@given(st.binary(max_size=200))
def test_any_body_grants_something_or_denies(body):
    for text in (body, b"{" + body):
        found = parsed(text)
        assert found.isprintable() if isinstance(found, str) else found.key.startswith("live/")


def test_a_re_check_is_marked_in_the_question():
    asked = json.loads(JSON.question(request(token="x"), KEY))
    assert "recheck" not in asked
    again = json.loads(JSON.question(request(token="x").again(12.34), KEY))
    assert again == {**asked, "recheck": True, "running_s": 12.3}


# nginx-rtmp -------------------------------------------------------------------------------------------------------------


def form(asked):
    return parse_qsl(NGINX.question(asked, KEY).decode(), keep_blank_values=True, strict_parsing=True)


CONNECTION = [
    ("app", "live"),
    ("flashver", "OBS & Co"),
    ("swfurl", "swf"),
    ("tcurl", "rtmp://host/live"),
    ("pageurl", "http://page/?a=b"),
    ("addr", "2001:db8::1"),
    ("clientid", "7"),
]


def test_a_publish_is_asked_for_in_the_fields_of_nginx_rtmp():
    assert form(request(token="a b", x="é")) == [
        *CONNECTION,
        ("call", "publish"),
        ("name", "cam"),
        ("type", "live"),
        ("token", "a b"),
        ("x", "é"),
    ]
    assert ("type", "record") in form(request(arguments={"type": "record"}))
    assert ("type", "live") in form(request(arguments={"type": 7}))


def test_a_play_is_asked_for_in_the_fields_of_nginx_rtmp():
    times = {"start": -2000.0, "duration": -1, "reset": True}
    assert form(request(Action.PLAY, times)) == [
        *CONNECTION,
        ("call", "play"),
        ("name", "cam"),
        ("start", "4294965296"),
        ("duration", "4294967295"),
        ("reset", "1"),
    ]
    odd = {"start": float("nan"), "duration": "x", "reset": False}
    assert form(request(Action.PLAY, odd))[-3:] == [("start", "0"), ("duration", "0"), ("reset", "0")]


def test_a_re_check_is_an_update_of_nginx_rtmp():
    for action in (Action.PUBLISH, Action.PLAY):
        asked = form(request(action, token="x").again(61.9))
        assert asked == [*CONNECTION, ("call", f"update_{action}"), ("time", "61"), ("name", "cam"), ("token", "x")]


def test_a_client_can_not_replace_a_field_by_a_parameter():
    forged = dict.fromkeys(("app", "addr", "call", "name", "type", "time", "timestamp", "start", "reset", "clientid"), "forged")
    asked = form(request(**forged, token="x"))
    assert "forged" not in dict(asked).values()
    assert ("token", "x") in asked


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=5))
def test_any_parameters_arrive_as_they_are(parameters):
    asked = dict(form(Request(Action.PUBLISH, "a:1", "a", KEY, parameters)))
    fields = {"app", "flashver", "swfurl", "tcurl", "pageurl", "addr", "clientid", "call", "name", "type"}
    fields |= {"time", "timestamp", "start", "duration", "reset"}
    assert {name: value for name, value in parameters.items() if name not in fields}.items() <= asked.items()


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(200, body=b'{"stream": "other"}'), Grant(KEY)),
        (Response(204, defect="broke off"), Grant(KEY)),
        (Response(302), Grant(KEY)),
        (Response(302, {"Location": "other"}), Grant(StreamKey("live/other"))),
        (Response(301, {"Location": "é".encode().decode("latin-1")}), Grant(StreamKey("live/é"))),
        (Response(302, {"Location": "rtmp://far/app"}), Grant(KEY, (RelayUrl.parse("rtmp://far/app/{name}"),))),
        (Response(307, {"Location": "RTMP://far/app/x"}), Grant(KEY, (RelayUrl.parse("rtmp://far/app/x"),))),
        (Response(404), None),
        (Response(403, {"Location": "other"}), None),
        (Response(100), None),
    ],
)
def test_status_and_location_mean_what_they_mean_to_nginx_rtmp(response, expected):
    assert NGINX.grant(response, request(Action.PUBLISH), KEY) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://host/s3cret", "the Location is neither a stream's name nor an RTMP URL"),
        ("/s3cret", "the name in the response can't be the name of a stream"),
        ("a b", "the name in the response can't be the name of a stream"),
        ("rtmp://host:0/s3cret/x", "relay_to in the response can't be used: the host or port is wrong"),
    ],
)
def test_another_location_denies(location, expected):
    with pytest.raises(CallbackError) as raised:
        NGINX.grant(Response(302, {"Location": location}), request(Action.PUBLISH), KEY)
    assert str(raised.value) == expected


def test_a_play_can_not_be_redirected_to_another_server():
    with pytest.raises(CallbackError, match="the Location of a play is another server, and rtmpd can't pull"):
        NGINX.grant(Response(302, {"Location": "rtmp://host/app/s3cret"}), request(Action.PLAY), KEY)
    assert NGINX.grant(Response(302, {"Location": "other"}), request(Action.PLAY), KEY) == Grant(StreamKey("live/other"))


@pytest.mark.parametrize("location", ["other", "rtmp://host/app", "http://host/"])
def test_a_re_check_has_no_location(location):
    for action in (Action.PUBLISH, Action.PLAY):
        assert NGINX.grant(Response(302, {"Location": location}), request(action).again(1.0), KEY) == Grant(KEY)
