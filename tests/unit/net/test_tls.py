from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rtmpd.config.loader import load_text
from rtmpd.errors import RtmpdError
from rtmpd.net.tls import ClientTls, ServerTls, client_context, tls_problems
from tests.certificates import FAR_OFF, encrypt_key

NOW_S = datetime(2026, 6, 1, tzinfo=UTC).timestamp()


def options(text: str):
    return load_text(f"[tls]\n{text}", "test").tls


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory; return both ends, the client first."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends


def trusting(authority, *, name_matters: bool = True) -> ssl.SSLContext:
    context = authority.client_context()
    context.check_hostname = name_matters
    return context


# What is wrong ----------------------------------------------------------------------------------------------------------


def test_valid_options_have_no_problems(authority):
    pair, other = authority.issue("a.example"), authority.issue("b.example")
    assert tls_problems(options("")) == []
    assert tls_problems(options(f"tls_listen = :1936\n{pair.ini}")) == []
    assert tls_problems(options(f"tls_cert = {pair.both}, {other.both}")) == []
    assert tls_problems(options(f"{pair.ini}tls_client_auth = required\ntls_client_ca = {authority.path}")) == []
    assert tls_problems(options(f"tls_ca = {authority.path}")) == []


@pytest.fixture
def files(authority, tmp_path):
    """Files with all kinds of mistakes, by name."""
    pair, other, locked = authority.issue("a.example"), authority.issue("b.example"), authority.issue("c.example")
    encrypt_key(locked.key)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "empty.pem").write_text("")
    return {
        "cert": pair.cert,
        "key": pair.key,
        "other_key": other.key,
        "locked_cert": locked.cert,
        "locked_key": locked.key,
        "garbage": garbage,
        "empty": tmp_path / "empty.pem",
        "none": tmp_path / "none.pem",
        "directory": tmp_path,
        "ca": authority.path,
        "expired": authority.expired("a.example").both,
        "early": authority.issue("a.example", not_before=datetime(2998, 1, 1, tzinfo=UTC), not_after=FAR_OFF).both,
    }


@pytest.mark.parametrize(
    ("text", "option", "problem"),
    [
        ("tls_listen = :1936", "tls_cert", "not set, but tls_listen is"),
        ("tls_cert = {none}", "tls_cert", "{none}: No such file or directory"),
        ("tls_cert = {directory}", "tls_cert", "{directory}: Is a directory"),
        ("tls_cert = {empty}", "tls_cert", "{empty}: contains no certificate (PEM)"),
        ("tls_cert = {key}", "tls_cert", "{key}: contains no certificate (PEM)"),
        ("tls_cert = {garbage}\ntls_key = {key}", "tls_cert", "{garbage} with {key}: "),
        ("tls_cert = {cert}", "tls_key", "{cert}: contains no private key (PEM); if the key has its own file, set tls_key"),
        ("tls_cert = {cert}\ntls_key = {none}", "tls_key", "{none}: No such file or directory"),
        ("tls_cert = {cert}\ntls_key = {empty}", "tls_key", "{empty}: contains no private key (PEM)"),
        (
            "tls_cert = {cert}\ntls_key = {other_key}",
            "tls_key",
            "{other_key}: the key does not belong to the certificate in {cert}",
        ),
        ("tls_cert = {cert}, {cert}\ntls_key = {key}", "tls_key", "1 files, but tls_cert has 2"),
        ("tls_cert = {cert}\ntls_key = {key}, {key}", "tls_key", "2 files, but tls_cert has 1"),
        ("tls_cert = {locked_cert}\ntls_key = {locked_key}", "tls_key", "{locked_key}: the key is encrypted"),
        ("tls_cert = {expired}", "tls_cert", "{expired}: the certificate expired on 2021-01-01 00:00:00 UTC"),
        ("tls_cert = {early}", "tls_cert", "{early}: the certificate is not valid before 2998-01-01 00:00:00 UTC"),
        (
            "tls_cert = {cert}\ntls_key = {key}\ntls_client_auth = optional",
            "tls_client_ca",
            "not set, but tls_client_auth",
        ),
        ("tls_cert = {cert}\ntls_key = {key}\ntls_client_ca = {empty}", "tls_client_ca", "{empty}: contains no certificate"),
        ("tls_ca = {none}", "tls_ca", "{none}: No such file or directory"),
        ("tls_ca = {garbage}", "tls_ca", "{garbage}: "),
    ],
)
def test_each_problem_names_its_option(files, text, option, problem):
    found = tls_problems(options(text.format(**files)), NOW_S)
    assert [name for name, _ in found] == [option]
    assert found[0][1].startswith(problem.format(**files))


def test_all_problems_are_returned_at_once(files):
    text = "tls_cert = {none}, {expired}, {empty}\ntls_client_auth = required\ntls_ca = {none}".format(**files)
    assert [name for name, _ in tls_problems(options(text), NOW_S)] == [
        "tls_client_ca",
        "tls_cert",
        "tls_cert",
        "tls_ca",
        "tls_cert",
    ]


def test_an_encrypted_key_does_not_prompt(files):
    # With a terminal, OpenSSL would ask there, and wait.
    master, slave = os.openpty()
    script = (
        "from rtmpd.config.loader import load_text; from rtmpd.net.tls import tls_problems;"
        f"tls = load_text('[tls]\\ntls_cert = {files['locked_cert']}\\ntls_key = {files['locked_key']}\\n', 'x').tls;"
        "assert 'encrypted' in tls_problems(tls)[0][1]"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=slave, timeout=30, start_new_session=True)
    os.close(master)
    os.close(slave)
    assert done.returncode == 0


def test_a_certificate_that_is_not_for_servers_is_a_problem(tmp_path):
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=a"]
    subprocess.run([*make, "-addext", "extendedKeyUsage=clientAuth"], check=True, capture_output=True)
    found = tls_problems(options(f"tls_cert = {cert}\ntls_key = {key}"))
    assert [option for option, _ in found] == ["tls_cert"]
    assert found[0][1].startswith(f"{cert}: every client would reject it: the server's certificate can't be verified: unsu")


# Servers ----------------------------------------------------------------------------------------------------------------


def test_server_tls_raises_with_all_problems(files):
    with pytest.raises(RtmpdError, match=r"\[tls\] tls_client_ca: .*; \[tls\] tls_cert: .*No such file"):
        ServerTls(options("tls_cert = {none}\ntls_client_auth = required".format(**files)))
    with pytest.raises(RtmpdError, match=r"\[tls\] tls_cert: not set"):
        ServerTls(options(""))


def test_an_expired_certificate_is_only_a_warning(authority):
    pair, good = authority.expired("a.example"), authority.issue("b.example")
    server = ServerTls(options(f"tls_cert = {good.both}, {pair.both}"))
    assert server.warnings(NOW_S) == [f"{pair.both}: the certificate expired on 2021-01-01 00:00:00 UTC"]
    assert server.not_after == datetime(2021, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ("a.example", 0),
        ("b.example", 1),
        ("B.Example", 1),
        ("b.example.", 1),
        ("x.wild.example", 2),
        ("X.WILD.example", 2),
        ("x.y.wild.example", 0),
        ("wild.example", 0),
        ("exact.wild.example", 3),
        ("unknown.example", 0),
        (None, 0),
    ],
)
def test_a_client_gets_the_certificate_with_the_name_that_it_asks_for(authority, asked, index):
    pairs = [authority.issue(name) for name in ("a.example", "b.example", "*.wild.example", "exact.wild.example")]
    server = ServerTls(options(f"tls_cert = {', '.join(str(pair.both) for pair in pairs)}"))
    client, ours = shake(server.context, trusting(authority, name_matters=False), asked)
    assert client.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(pairs[index].cert.read_text())
    assert getattr(ours, "asked_for", None) == (asked or "")


def test_only_https_chooses_a_protocol(authority):
    pairs = [authority.issue("a.example"), authority.issue("b.example")]
    server = ServerTls(options(f"tls_cert = {', '.join(str(pair.both) for pair in pairs)}"))

    def chosen(context, name, offered):
        client = trusting(authority)
        client.set_alpn_protocols(offered)
        return shake(context, client, name)[0].selected_alpn_protocol()

    for name in ("a.example", "b.example"):
        assert chosen(server.web_context, name, ["http/1.1", "h2"]) == "h2"
        assert chosen(server.web_context, name, ["http/1.1"]) == "http/1.1"
        assert chosen(server.web_context, name, ["http/0.9"]) is None
        assert chosen(server.context, name, ["h2"]) is None


def test_the_subjects_name_counts_only_without_alternative_names(authority, tmp_path):
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=Cn.example"]
    subprocess.run(make, check=True, capture_output=True)
    both = authority.issue("san.example", common_name="hidden.example")
    server = ServerTls(options(f"tls_cert = {cert}, {both.cert}\ntls_key = {key}, {both.key}"))
    assert [each.names for each in server.certificates] == [("cn.example",), ("san.example",)]


@pytest.mark.parametrize(("version", "works"), [("1.2", {"TLSv1_2", "TLSv1_3"}), ("1.3", {"TLSv1_3"})])
def test_tls_version_sets_the_oldest_version(authority, version, works):
    pair = authority.issue("a.example")
    server = ServerTls(options(f"{pair.ini}tls_version = {version}"))
    for name in ("TLSv1_2", "TLSv1_3"):
        client = trusting(authority)
        client.minimum_version = client.maximum_version = ssl.TLSVersion[name]
        if name in works:
            assert shake(server.context, client, "a.example")[0].version() == name.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
                shake(server.context, client, "a.example")


def test_no_session_tickets_are_sent(authority):
    """librtmp with GnuTLS takes a ticket of TLS 1.3 for the end."""
    server = ServerTls(options(authority.issue("a.example").ini))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority).wrap_bio(down, up, server_hostname="a.example")
    ours = server.context.wrap_bio(up, down, server_side=True)
    for end in (client, ours, client, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert ours.version() == "TLSv1.3"
    assert down.read() == b""


@pytest.mark.parametrize("second", [False, True])
def test_client_certificates_are_required_whichever_server_certificate_is_selected(authority, tmp_path, second):
    pairs = [authority.issue("a.example"), authority.issue("b.example")]
    host = "b.example" if second else "a.example"
    ini = f"tls_cert = {pairs[0].both}, {pairs[1].both}\ntls_client_ca = {authority.path}\ntls_client_auth = "
    known = authority.client_context(authority.issue("client.example", common_name="me"))
    for kind in ("optional", "required"):
        ours = shake(ServerTls(options(ini + kind)).context, known, host)[1]
        assert (("commonName", "me"),) in ours.getpeercert()["subject"]
    assert shake(ServerTls(options(ini + "optional")).context, trusting(authority), host)[1].getpeercert() is None
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(ServerTls(options(ini + "required")).context, trusting(authority), host)


def test_a_client_certificate_of_another_authority_is_rejected(authority, tmp_path):
    from tests.certificates import Authority

    stranger = Authority(tmp_path / "stranger")
    pair = authority.issue("a.example")
    server = ServerTls(options(f"{pair.ini}tls_client_auth = optional\ntls_client_ca = {authority.path}"))
    client = trusting(authority)
    client.load_cert_chain(stranger.issue("x.example").both)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server.context, client, "a.example")


# Clients ----------------------------------------------------------------------------------------------------------------


def test_a_client_verifies_the_server_by_default_and_with_a_file(authority):
    pair = authority.issue("a.example")
    server = ServerTls(options(pair.ini)).context
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(server, ClientTls().context, "a.example")
    checked = ClientTls(options(f"tls_ca = {authority.path}"))
    assert shake(server, checked.context, "a.example")[0].getpeercert()
    assert checked.ca == str(authority.path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(server, checked.context, "b.example")


def test_a_client_without_verification_accepts_any_server(authority):
    server = ServerTls(options(authority.expired("a.example").ini)).context
    client = ClientTls(options("tls_verify = no"))
    assert shake(server, client.context, "any.example")[0].version() == "TLSv1.3"
    # Of https:// servers it says nothing.
    assert client.ca is not False


def test_the_systems_authorities_are_those_of_openssl():
    paths = ssl.get_default_verify_paths()
    assert ClientTls().ca in (paths.cafile, paths.capath, True)


def test_a_ca_file_is_read_at_once_and_not_again(authority, tmp_path):
    with pytest.raises(RtmpdError, match=r"\[tls\] tls_ca: /none: No such file"):
        ClientTls(options("tls_ca = /none"))
    path = tmp_path / "ca.pem"
    path.write_bytes(Path(authority.path).read_bytes())
    client = ClientTls(options(f"tls_ca = {path}"))
    path.unlink()
    assert client.context.get_ca_certs()
    with pytest.raises(OSError, match="No such file"):
        client_context(str(path))
