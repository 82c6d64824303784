from collections.abc import Callable

from rtmpd.live.copies import CopyInputState as CopyInputState
from rtmpd.live.copies import CopyLaneState as CopyLaneState
from rtmpd.live.copies import MergedTrackState as MergedTrackState
from rtmpd.live.courier import CourierState as CourierState
from rtmpd.live.courier import deliver_each as deliver_each
from rtmpd.live.fanout import FanoutState as FanoutState
from rtmpd.live.fanout import GroupState as GroupState
from rtmpd.live.log import LogState as LogState
from rtmpd.live.pages import PageAccount as PageAccount
from rtmpd.live.pages import PageState as PageState
from rtmpd.live.source import SourceState as SourceState
from rtmpd.live.stats import StatsState as StatsState
from rtmpd.live.subscriber import SubscriberState as SubscriberState
from rtmpd.live.subscriber import send_each as send_each
from rtmpd.media.timestamps import TimelineState as TimelineState
from rtmpd.media.timestamps import TrackState as TrackState
from rtmpd.net.readers import read_each as read_each
from rtmpd.net.transport import TransportState as TransportState
from rtmpd.protocol.chunk import ChunkReader as ChunkReader
from rtmpd.protocol.endpoint import EndpointState as EndpointState
from rtmpd.protocol.intake import FrameIntake as FrameIntake

INTERFACE: int

def hand_over(name: str, method: Callable[..., object]) -> None: ...
