"""What a player gets of a stream, by what it declared at connect and by the options. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.media.rewrite import OLD_AUDIO, Rewrite

if TYPE_CHECKING:
    from rtmpd.config.model import LiveConfig
    from rtmpd.media.rewrite import Content
    from rtmpd.protocol.enhanced import Capabilities

_HVC1 = "hvc1"


def wanted(capabilities: Capabilities, options: LiveConfig, content: Content) -> Rewrite:
    """Return what is to be rewritten for a player, whatever the content requires.

    A codec under a FourCC that the player does not list is sent with the legacy header, if the codec has one. Audio that it
    does not support is left out: video alone is better than nothing.

    A player that declares nothing gets plain tracks: such clients are older than multitrack and ModEx. They may support HEVC in
    either form, which `hevc_fallback` says.
    """
    takes_hvc1 = capabilities.takes_video(_HVC1)
    audio = content.audio_four_cc
    old_audio = audio in OLD_AUDIO and _needs_old_header(capabilities, capabilities.takes_audio(audio))
    return Rewrite(
        default_track=not capabilities.multitrack and options.multitrack_fallback == "default",
        hevc=_HVC1 if takes_hvc1 else options.hevc_fallback,
        mod_ex=capabilities.mod_ex,
        old_video=_needs_old_header(capabilities, capabilities.takes_video("avc1")),
        old_audio=old_audio,
        mute=bool(audio)
        and not old_audio
        and options.unsupported_codec == "refuse"
        and capabilities.takes_audio(audio) is False,
    )


def _needs_old_header(capabilities: Capabilities, takes: bool | None) -> bool:
    """Whether a codec is sent with its legacy header; a client that declares other new abilities knows the new headers."""
    return takes is False or (takes is None and not capabilities.caps_ex)


def unsupported(capabilities: Capabilities, options: LiveConfig, content: Content) -> str:
    """Return why a player does not get the stream; empty if it does.

    Only for players that list their codecs; only for video, and only if there is no form that they support.
    """
    four_cc = content.video_four_cc
    if not four_cc or options.unsupported_codec != "refuse" or capabilities.takes_video(four_cc) is not False:
        return ""
    if four_cc == "avc1" or (four_cc == _HVC1 and options.hevc_fallback == "codec12"):
        return ""
    listed = ", ".join(sorted(capabilities.video or capabilities.four_ccs))
    return f"The video is {four_cc}, and the player has said that it takes only {listed}."
