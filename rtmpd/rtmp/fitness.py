"""What a player gets of a stream, by what it said of itself at connect and by what the configuration says.

Pure decisions; imports no gevent and makes no change to anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.media.rewrite import OLD_AUDIO, Rewrite

if TYPE_CHECKING:
    from rtmpd.config.model import LiveConfig
    from rtmpd.media.rewrite import Content
    from rtmpd.protocol.enhanced import Capabilities

__all__ = ["unsupported", "wanted"]

_HVC1 = "hvc1"


def wanted(capabilities: Capabilities, options: LiveConfig, content: Content) -> Rewrite:
    """Return what is to be rewritten for a player, at the most.

    What comes under a FourCC that it does not name, but has an old header too, gets that. Audio that it does not take is left
    out: video alone is more than nothing.

    Who declares nothing gets plain tracks: those clients are older than multitrack and ModEx. HEVC they may know in either
    form, which is for the operator to say.
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
    """Whether what has an old header, too, is to get that; a client with other new abilities knows the new ones."""
    return takes is False or (takes is None and not capabilities.caps_ex)


def unsupported(capabilities: Capabilities, options: LiveConfig, content: Content) -> str:
    """Return why a player is not to get the stream; empty if it is.

    Only for players that list what they take; only for video, and only if there is no form that they do take.
    """
    four_cc = content.video_four_cc
    if not four_cc or options.unsupported_codec != "refuse" or capabilities.takes_video(four_cc) is not False:
        return ""
    if four_cc == "avc1" or (four_cc == _HVC1 and options.hevc_fallback == "codec12"):
        return ""
    listed = ", ".join(sorted(capabilities.video or capabilities.four_ccs))
    return f"The video is {four_cc}, and the player has said that it takes only {listed}."
