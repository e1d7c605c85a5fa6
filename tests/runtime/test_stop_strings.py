from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.stop_strings import StopStrings

letters = st.text("ab", max_size=5)


@given(pieces=st.lists(letters, max_size=8), strings=st.lists(letters, max_size=3))
def test_the_match_that_ends_first_wins_wherever_the_pieces_are_cut(pieces, strings):
    stop = StopStrings(strings)
    given_out = "".join(stop.push(piece) for piece in pieces) + stop.flush()
    text = "".join(pieces)
    matches = [(end, start) for end in range(len(text) + 1) for start in range(end) if text[start:end] in strings]
    if matches:
        end, start = min(matches)
        assert (given_out, stop.hit) == (text[:start], text[start:end])
    else:
        assert (given_out, stop.hit) == (text, None)


@given(text=letters, strings=st.lists(letters, max_size=3))
def test_no_more_is_held_back_than_may_begin_a_match(text, strings):
    stop = StopStrings(strings)
    shown = stop.push(text)
    held = text[len(shown) :] if stop.hit is None else ""
    assert held == "" or any(string.startswith(held) and string != held for string in strings)


def test_a_flush_forgets_what_came_before():
    stop = StopStrings(["ab"])
    assert (stop.push("a"), stop.flush(), stop.push("b"), stop.hit) == ("", "a", "b", None)


def test_after_a_match_nothing_comes_out():
    stop = StopStrings(["b", ""])
    assert (stop.push("abc"), stop.hit, stop.push("d"), stop.flush()) == ("a", "b", "", "")
