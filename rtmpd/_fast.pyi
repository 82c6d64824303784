from rtmpd.live.subscriber import send_each as send_each
from rtmpd.protocol.chunk import ChunkReader as ChunkReader

INTERFACE: int
