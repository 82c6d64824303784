"""Texts for the log that describe audio and video tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.video_codecs import VideoConfig


def describe_video(config: VideoConfig) -> str:
    """Describe a video track, without what is unknown: ``hevc Main 10 4.1 1280x720 4:2:0 10 bit bt2020nc/bt2020/smpte2084``."""
    size = f"{config.width}x{config.height}" if config.width else ""
    depth = f"{config.bit_depth} bit" if config.bit_depth else ""
    return _join(config.codec, config.profile, config.level, size, config.chroma, depth, config.color)


def describe_audio(config: AudioConfig) -> str:
    """Describe an audio track: ``aac LC 48000 Hz 2 channels``, ``flac 48000 Hz 6 channels 5.1``."""
    rate = f"{config.sample_rate_hz} Hz" if config.sample_rate_hz else ""
    channels = f"{config.channels} channel{'s' * (config.channels > 1)}" if config.channels else ""
    return _join(config.codec, config.profile, rate, channels, config.layout)


def _join(*words: str) -> str:
    return " ".join(filter(None, words))
