"""Reading of MP4 and MOV files: their samples as RTMP messages. No I/O but on a file that the caller opens."""
