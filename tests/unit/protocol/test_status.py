"""Status codes and info objects: the strings that clients compare."""

from __future__ import annotations

import pytest

from rtmpd.protocol import status

CODES = [name for name in vars(status) if name.isupper() and name[0] != "_"]


def test_codes_are_those_of_flash_media_server():
    assert {name: getattr(status, name) for name in CODES} == {
        "CONNECT_INVALID_APP": "NetConnection.Connect.InvalidApp",
        "CONNECT_RECONNECT_REQUEST": "NetConnection.Connect.ReconnectRequest",
        "CONNECT_REJECTED": "NetConnection.Connect.Rejected",
        "CONNECT_SUCCESS": "NetConnection.Connect.Success",
        "PAUSE_NOTIFY": "NetStream.Pause.Notify",
        "PLAY_FAILED": "NetStream.Play.Failed",
        "PLAY_INSUFFICIENT_BW": "NetStream.Play.InsufficientBW",
        "PLAY_NO_TRACK": "NetStream.Play.NoSupportedTrackFound",
        "PLAY_PUBLISH_NOTIFY": "NetStream.Play.PublishNotify",
        "PLAY_RESET": "NetStream.Play.Reset",
        "PLAY_START": "NetStream.Play.Start",
        "PLAY_STOP": "NetStream.Play.Stop",
        "PLAY_STREAM_NOT_FOUND": "NetStream.Play.StreamNotFound",
        "PLAY_UNPUBLISH_NOTIFY": "NetStream.Play.UnpublishNotify",
        "PUBLISH_BAD_NAME": "NetStream.Publish.BadName",
        "PUBLISH_DENIED": "NetStream.Publish.Denied",
        "PUBLISH_REJECTED": "NetStream.Publish.Rejected",
        "PUBLISH_START": "NetStream.Publish.Start",
        "SEEK_FAILED": "NetStream.Seek.Failed",
        "SEEK_NOTIFY": "NetStream.Seek.Notify",
        "STREAM_FAILED": "NetStream.Failed",
        "UNPAUSE_NOTIFY": "NetStream.Unpause.Notify",
        "UNPUBLISH_SUCCESS": "NetStream.Unpublish.Success",
    }


@pytest.mark.parametrize("name", CODES)
def test_the_level_is_error_for_refusals_and_status_for_the_rest(name):
    refusals = {
        *("CONNECT_INVALID_APP", "CONNECT_REJECTED", "PLAY_FAILED", "PLAY_STREAM_NOT_FOUND"),
        *("PUBLISH_BAD_NAME", "PUBLISH_DENIED", "PUBLISH_REJECTED", "SEEK_FAILED"),
        *("PLAY_NO_TRACK", "STREAM_FAILED"),
    }
    assert status.info(getattr(status, name), "")["level"] == ("error" if name in refusals else "status")


def test_an_info_object_begins_with_level_code_and_description():
    info = status.info(status.PLAY_START, "Started playing live/a.", details="live/a", clientid=1)
    assert list(info.items()) == [
        ("level", "status"),
        ("code", "NetStream.Play.Start"),
        ("description", "Started playing live/a."),
        ("details", "live/a"),
        ("clientid", 1),
    ]
