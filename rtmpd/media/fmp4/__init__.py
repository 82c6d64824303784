"""Writing of fragmented MP4: an initialization segment, and fragments made of RTMP messages (ISO/IEC 14496-12, CMAF). Pure."""
