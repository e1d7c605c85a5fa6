from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.detokenizer import Utf8Stream


@given(pieces=st.lists(st.binary(max_size=4) | st.text(max_size=2).map(str.encode), max_size=8))
def test_pieces_join_to_what_the_whole_reads_as(pieces):
    stream = Utf8Stream()
    assert "".join(map(stream.push, pieces)) + stream.flush() == b"".join(pieces).decode("utf-8", errors="replace")
    assert stream.push(b"a") == "a", "a flushed stream begins anew"


def test_a_character_waits_for_its_last_byte():
    stream = Utf8Stream()
    assert [stream.push(bytes([byte])) for byte in "€".encode()] == ["", "", "€"]
    assert stream.push(b"\xe2\x82") == ""
    assert stream.push(b"a") == "\ufffda"
