import pytest

from rtmpd.util.stream_key import StreamKey


@pytest.mark.parametrize(
    ("text", "app", "name"),
    [("live/test", "live", "test"), ("live/sub/test", "live/sub", "test"), ("test", "", "test"), ("", "", "")],
)
def test_the_application_is_all_but_the_last_part(text, app, name):
    key = StreamKey(text)
    assert (key.app, key.name) == (app, name)
    assert key == text
    assert {key: 1}[text] == 1
    assert f"{key}" == text
