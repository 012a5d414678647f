"""The frame codec, read back by hyperframe and hpack."""

from __future__ import annotations

import hpack
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from planes.mesh import frames


def read(data: bytes) -> Frame:
    """The one frame in these bytes."""
    frame, size = Frame.parse_frame_header(memoryview(data[:9]))
    assert len(data) == 9 + size
    frame.parse_body(memoryview(data[9:]))
    return frame


def test_control_frames_are_read_as_meant() -> None:
    """Each by its type, stream and value."""
    reset, window = read(frames.rst_stream(5, frames.CANCEL)), read(frames.window_update(7, 1000))
    goaway, settings = read(frames.goaway(9, frames.NO_ERROR)), read(frames.settings([(frames.MAX_FRAME_SIZE, 65536)]))
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (5, 8)
    assert isinstance(window, WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (7, 1000)
    assert isinstance(goaway, GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code) == (9, 0)
    assert isinstance(settings, SettingsFrame)
    assert settings.settings == {5: 65536}


def test_encoded_fields_decode_in_order() -> None:
    """Also values longer than a length's first byte can say."""
    fields = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.2:80"), (b"baggage", b"v" * 5000)]
    assert hpack.Decoder().decode(frames.encode_fields(fields), raw=True) == fields
