"""The role of a publisher, and the stream that it means: by query, alias, arrival and credential."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.errors import Refused
from rtmpd.hub import Hub
from rtmpd.live.selection import SourceRole
from rtmpd.phases import ConnectionPhase
from rtmpd.protocol.command import Command
from rtmpd.protocol.naming import resolve
from rtmpd.rtmp.commands import COMMANDS
from rtmpd.services.auth.service import Auth, read_files
from rtmpd.services.auth.signing import sign
from tests.unit.live.fakes import settle
from tests.unit.rtmp.fakes import ConnectionTransport, new_connection

PRIMARY, BACKUP = SourceRole.PRIMARY, SourceRole.BACKUP
NAMES = st.text(st.sampled_from("ab_/.{}nme?=&%~\u202e\x01 "), max_size=20)
ALIAS = "[publish]\non_conflict = backup\nbackup_alias = {name}_backup\nstandby_limit = 4\n"


class Recording(AllowAll):
    """Keeps the keys that it was asked about."""

    def __init__(self, inner):
        self._inner = inner
        self.keys = []

    def authorize(self, request):
        self.keys.append(request.key)
        return self._inner.authorize(request)


class Server:
    """A hub with authentication, and clients that publish.

    Attributes:
        hub: The hub.
        asked: The keys of the authorization requests.
    """

    def __init__(self, ini):
        self.hub = Hub(load_text(ini))
        self._auth = Auth(self.hub, Auth.select(self.hub.config))
        self._auth.files = read_files(Auth.select(self.hub.config).files)
        self._auth.start()
        self.hub.authorizer = Recording(self.hub.authorizer)
        self._connections = []

    @property
    def asked(self):
        return self.hub.authorizer.keys

    def publish(self, name, app="live", peer="192.0.2.1:50000"):
        connection = new_connection(self.hub, ConnectionTransport(peer=peer), number=len(self._connections) + 1)
        self._connections.append(connection)
        connection.enter(ConnectionPhase.CONNECT)
        COMMANDS["connect"](connection, Command("connect", 1.0, {"app": app, "tcUrl": f"rtmp://host/{app}"}, [], 0))
        COMMANDS["createStream"](connection, Command("createStream", 2.0, None, [], 0))
        COMMANDS["publish"](connection, Command("publish", 3.0, None, [name], 1))
        return connection

    def roles(self, key="live/show"):
        return [each.role for each in self.hub.streams[key].ingest.publishers]

    def stop(self):
        for connection in self._connections:
            connection.leave_all()
        for stream in list(self.hub.streams.values()):
            stream.end()
            stream.close()
        self._auth.stop(1)
        settle(2)


@pytest.fixture
def serve():
    made = []

    def start(ini):
        made.append(Server(ini))
        return made[-1]

    yield start
    for each in made:
        each.stop()


def test_roles_follow_the_order_of_arrival(serve):
    server = serve("[publish]\non_conflict = backup\n")
    server.publish("show")
    server.publish("show")
    assert server.roles() == [PRIMARY, BACKUP]
    with pytest.raises(Refused) as refused:
        server.publish("show")
    assert "standby_limit is 1" in refused.value.reason


@pytest.mark.parametrize("query", ["backup=1", "backup=yes", "role=backup", "backup=true&role=primary"])
def test_a_query_tells_the_role(serve, query):
    server = serve("[publish]\non_conflict = backup\n")
    server.publish(f"show?{query}")
    server.publish("show")
    assert server.roles() == [BACKUP, PRIMARY]


@pytest.mark.parametrize("query", ["backup=0", "role=", "role=slate", "role=PRIMARY", "backup="])
def test_other_queries_tell_nothing(serve, query):
    server = serve("[publish]\non_conflict = backup\n")
    server.publish(f"show?{query}")
    assert server.roles() == [PRIMARY]


def test_a_publisher_may_ask_for_the_primary_role(serve):
    server = serve("[publish]\non_conflict = backup\n")
    server.publish("show")
    server.publish("show?role=primary")
    assert server.roles() == [PRIMARY, PRIMARY]


@pytest.mark.parametrize("query", ["", "?backup=1", "?role=primary"])
def test_an_alias_leads_to_the_stream_whatever_the_query(serve, query):
    server = serve(ALIAS)
    server.publish(f"show_backup{query}")
    server.publish("show")
    assert server.roles() == [BACKUP, PRIMARY]
    assert list(server.hub.streams) == ["live/show"]
    assert server.asked == ["live/show"] * 2


@pytest.mark.parametrize("name", ["_backup", "show_backup_", "show_backu", "SHOW_BACKUP", "show/_backup", "_definst__backup"])
def test_names_that_are_no_alias_stay_as_they_are(serve, name):
    server = serve(ALIAS)
    server.publish(name)
    assert list(server.hub.streams) == [resolve("live", "", name, "").key]


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.sampled_from("ab_/.{}nme?=&%~\u202e\x01 "), max_size=20), st.sampled_from(["{name}_b", "b_{name}", "a{name}a"])
)
def test_an_alias_leads_only_to_what_a_client_may_name_itself(name, alias):
    """The key is that of a plain name, in the application of the client."""
    server = Server(f"[publish]\nbackup_alias = {alias}\n")
    try:
        server.publish(name)
    except Refused:
        return
    finally:
        keys = list(server.hub.streams)
        server.stop()
    for key in keys:
        app, _, own = key.rpartition("/")
        assert app.split("/")[0] == "live" or key.split("/")[0] == "live"
        assert resolve(app, "", own, "").key == key
        before, _, after = alias.partition("{name}")
        plain = resolve("live", "", name, "stream").key
        assert key in {plain, plain.rpartition("/")[0] + "/" + own}
        if key != plain:
            assert plain.rpartition("/")[2] == f"{before}{own}{after}"


# Alias and credentials --------------------------------------------------------------------------------------------------


def test_a_token_of_the_stream_is_one_of_its_alias(serve):
    server = serve(f"{ALIAS}[auth]\nauth_mode = token\nauth_publish = yes\nauth_tokens = live/show=sesame\n")
    server.publish("show?token=sesame")
    server.publish("show_backup?token=sesame")
    assert server.roles() == [PRIMARY, BACKUP]
    with pytest.raises(Refused):
        server.publish("show_backup?token=wrong")
    with pytest.raises(Refused):
        server.publish("other_backup?token=sesame")
    assert list(server.hub.streams) == ["live/show"]


def test_a_publish_key_may_have_the_alias(serve):
    server = serve(f"{ALIAS}[auth]\nauth_publish_keys = live/show=s3cret\n")
    server.publish("s3cret")
    server.publish("s3cret_backup")
    assert server.roles() == [PRIMARY, BACKUP]
    with pytest.raises(Refused):
        server.publish("show_backup")


def test_a_signature_of_the_stream_is_one_of_its_alias(serve):
    server = serve(f"{ALIAS}[auth]\nauth_publish = yes\nauth_sign_secrets = 0123456789abcdef0123456789abcdef\n")
    until = int(time.time()) + 1000
    secret = server.hub.config.auth.auth_sign_secrets[0]
    signature = sign(secret, "publish", "live/show", until)
    server.publish(f"show?expires={until}&sign={signature}")
    server.publish(f"show_backup?expires={until}&sign={signature}")
    assert server.roles() == [PRIMARY, BACKUP]


TAKEOVER = "[publish]\non_conflict = takeover\npublisher_takeover_s = 0\ntakeover_hold_s = 0\n"
TOKENS = "[auth]\nauth_mode = token\nauth_publish = yes\nauth_tokens = live/show=sesame, live/show=other\n"


def test_only_the_same_token_takes_over(serve):
    server = serve(TAKEOVER + TOKENS)
    first = server.publish("show?token=sesame", peer="192.0.2.1:1")
    with pytest.raises(Refused) as refused:
        server.publish("show?token=other", peer="192.0.2.1:2")
    assert "takeover_by is credential" in refused.value.reason
    assert server.hub.counters["takeovers_refused"] == 1
    assert not first.close_reason
    second = server.publish("show?token=sesame&backup=0", peer="192.0.2.9:3")
    assert first.transport.close_reason
    assert server.hub.streams["live/show"].source is second.sources[1]


def test_where_nothing_is_required_only_the_same_address_takes_over(serve):
    server = serve(TAKEOVER)
    server.publish("show?token=x", peer="192.0.2.1:1")
    with pytest.raises(Refused):
        server.publish("show?token=x", peer="192.0.2.2:1")
    server.publish("show", peer="192.0.2.1:2")
    assert len(server.roles()) == 1
