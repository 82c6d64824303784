from __future__ import annotations

import enum
from typing import NamedTuple


class Fault(enum.Enum):
    STALLED = "stalled"

    @property
    def down(self):
        return True


class HealthRules(NamedTuple):
    stall_timeout_s: float = 2.0
    min_fps: float = 0
    keyframe_timeout_s: float = 0
    min_bitrate: float = 0
    frozen_timeout_s: float = 0
    frozen_frame_bytes: int = 0
    silence_timeout_s: float = 0
    silence_frame_bytes: int = 0


class Figures(NamedTuple):
    messages: int
    bytes: int
    video_frames: int
    keyframes: int
    largest_inter_bytes: int
    largest_audio_bytes: int
    has_video: bool
    has_audio: bool


class Health:
    def __init__(self, rules):
        self.rules = rules
        self.fault = None
        self.healthy_since_s = 0.0
        self._m = -1
        self._at = None

    def tick(self, now_s, f):
        if f.messages != self._m:
            self._m = f.messages
            self._at = now_s
        self.fault = Fault.STALLED if now_s - self._at >= self.rules.stall_timeout_s - 0.05 else None
        self.healthy_since_s = (self.healthy_since_s or now_s) if self.fault is None else 0.0
