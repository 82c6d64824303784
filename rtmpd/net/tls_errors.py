"""Explanations of TLS failures for the log, because OpenSSL's own texts tell an operator little. No I/O."""

from __future__ import annotations

import ssl

_HANDSHAKE = 0x16
_RTMP = (3, 6, 8)
_SHOWN_BYTES = 16

_BY_REASON = {
    "NO_SHARED_CIPHER": "no cipher in common with the {peer}",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no signature algorithm in common with the {peer}",
    "NO_SHARED_GROUP": "no key exchange in common with the {peer}",
    "HTTP_REQUEST": "the {peer} speaks plain HTTP",
    "HTTPS_PROXY_REQUEST": "the {peer} speaks plain HTTP",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the {peer} sent no certificate, but tls_client_auth is required",
    "WRONG_VERSION_NUMBER": "the {peer} sent data that is not TLS",
    "RECORD_LAYER_FAILURE": "the {peer} sent data that is not TLS, or the data was modified on its way",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "the data of the {peer} was modified on its way",
    # Alerts of the peer, RFC 8446 section 6.2.
    "TLSV1_ALERT_UNKNOWN_CA": "the {peer} does not trust our certificate: it does not know the issuer",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the {peer} reports that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the {peer} reports that our certificate has been revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the {peer} rejects our certificate: wrong name, or malformed",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the {peer} does not support the type of our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the {peer} rejects our certificate, without a reason",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the {peer} requires a client certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "the {peer} denies access with our certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no TLS version in common, reports the {peer}",
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": "the {peer} requires stronger ciphers",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "nothing in common, reports the {peer}; or it requires a client certificate",
    "TLSV1_UNRECOGNIZED_NAME": "the {peer} has no certificate for the name that we asked for",
    "TLSV1_ALERT_DECRYPT_ERROR": "the {peer} reports a wrong signature or key",
    "TLSV1_ALERT_DECODE_ERROR": "the {peer} could not decode our data",
    "TLSV1_ALERT_INTERNAL_ERROR": "the {peer} reports an internal error",
    "TLSV1_ALERT_USER_CANCELLED": "the {peer} cancelled the handshake",
}
_VERSIONS = frozenset({"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "VERSION_TOO_HIGH", "NO_PROTOCOLS_AVAILABLE"})


def not_tls(first: bytes) -> str:
    """Return what a client speaks, by its first bytes; empty if they begin a TLS handshake."""
    if first[0] == _HANDSHAKE:
        return ""
    if first[0] in _RTMP:
        return "the client speaks plain RTMP; this port is for rtmps://"
    if first[:1].isalpha() and (b" /" in first[:_SHOWN_BYTES] or b"HTTP/" in first):
        return "the client speaks plain HTTP; this port is for rtmps://"
    return f"expected a TLS handshake, found {first[:_SHOWN_BYTES]!r}"


def explain(error: ssl.SSLError, peer: str, context: ssl.SSLContext | None = None) -> str:
    """Return why TLS failed.

    Args:
        error: OpenSSL's error.
        peer: How the text names the other side: client, server or peer.
        context: The context of this side, whose oldest TLS version the text names.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the {peer}'s certificate can't be verified: {error.verify_message.rstrip('.')}"
    reason = error.reason or ""
    if reason in _VERSIONS:
        oldest = f" (ours: {context.minimum_version.name.replace('v', ' ').replace('_', '.')} and newer)" if context else ""
        return f"no TLS version in common with the {peer}{oldest}"
    known = _BY_REASON.get(reason)
    if known is None:
        return f"TLS failed: {reason.lower().replace('_', ' ') or 'closed'}"
    return known.format(peer=peer)
