"""What goes wrong with TLS, in words for the log: OpenSSL's own say little to who runs a server.

Pure; imports ssl for its types.
"""

from __future__ import annotations

import ssl

__all__ = ["not_tls", "words"]

_HANDSHAKE = 0x16
_RTMP = (3, 6, 8)
_SHOWN_BYTES = 16

_BY_REASON = {
    "NO_SHARED_CIPHER": "no cipher that both know",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no kind of signature that both know",
    "NO_SHARED_GROUP": "no key exchange that both know",
    "HTTP_REQUEST": "the {peer} speaks plain HTTP",
    "HTTPS_PROXY_REQUEST": "the {peer} speaks plain HTTP",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the {peer} shows no certificate, and tls_client_auth is required",
    "WRONG_VERSION_NUMBER": "what the {peer} sends is not TLS",
    "RECORD_LAYER_FAILURE": "what the {peer} sends is not TLS, or was changed on its way",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "what the {peer} sent was changed on its way",
    # What the peer says, as alerts of RFC 8446 section 6.2.
    "TLSV1_ALERT_UNKNOWN_CA": "the {peer} does not trust our certificate: it does not know who signed it",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the {peer} says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the {peer} says that our certificate was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the {peer} does not take our certificate: its name or its form is wrong",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the {peer} does not take a certificate of this kind",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the {peer} does not take our certificate, and does not say why",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the {peer} requires a certificate of ours",
    "TLSV1_ALERT_ACCESS_DENIED": "the {peer} does not let us in by our certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no version of TLS that both know, says the {peer}",
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": "the {peer} asks for stronger ciphers",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the {peer} found nothing that both know, or wants a certificate of ours",
    "TLSV1_UNRECOGNIZED_NAME": "the {peer} does not know the name that we asked for",
    "TLSV1_ALERT_DECRYPT_ERROR": "the {peer} says that a signature or a key was wrong",
    "TLSV1_ALERT_DECODE_ERROR": "the {peer} could not read what we sent",
    "TLSV1_ALERT_INTERNAL_ERROR": "the {peer} says that it has an internal error",
    "TLSV1_ALERT_USER_CANCELLED": "the {peer} broke it off",
}
_VERSIONS = frozenset({"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "VERSION_TOO_HIGH", "NO_PROTOCOLS_AVAILABLE"})


def not_tls(first: bytes) -> str:
    """Say what the first bytes of a client are, if they are not TLS; else nothing."""
    if first[0] == _HANDSHAKE:
        return ""
    if first[0] in _RTMP:
        return "the client speaks plain RTMP; this port is for rtmps://"
    if first[:1].isalpha() and (b" /" in first[:_SHOWN_BYTES] or b"HTTP/" in first):
        return "the client speaks plain HTTP; this port is for rtmps://"
    return f"expected a TLS handshake, got {first[:_SHOWN_BYTES]!r}"


def words(error: ssl.SSLError, peer: str, context: ssl.SSLContext | None = None) -> str:
    """Say why TLS failed.

    Args:
        error: What OpenSSL says.
        peer: What the other side is to be called: client, server or peer.
        context: Ours, with the oldest version that it takes.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the {peer}'s certificate is not good: {error.verify_message.rstrip('.')}"
    reason = error.reason or ""
    if reason in _VERSIONS:
        oldest = f" (ours: {context.minimum_version.name.replace('v', ' ').replace('_', '.')} and newer)" if context else ""
        return f"no version of TLS that both know{oldest}"
    known = _BY_REASON.get(reason)
    if known is None:
        return f"TLS failed: {reason.lower().replace('_', ' ') or 'closed'}"
    return known.format(peer=peer)
