import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrolled.stops import Stops

FEW = st.text("ab", min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("stop", "text", "begin"),
    [
        ((), "abc", None),
        ("bc", "abc", 1),
        (("c", "bcd"), "abcd", 2),
        (("cd", "bcd"), "abcd", 1),
        (("x", "y"), "abc", None),
        ("€😀", "a€😀", 1),
        ("aa", "aaa", 0),
    ],
)
def test_the_first_to_be_complete_ends_the_text(stop, text, begin):
    assert Stops(stop).begin(text) == begin


@pytest.mark.parametrize(
    ("stop", "text", "length"),
    [
        ((), "ab", 0),
        ("END", "xE", 1),
        ("END", "EN", 2),
        ("END", "xE ", 0),
        (("ab", "bcd"), "abc", 2),
        ("aab", "aaa", 2),
    ],
)
def test_what_may_be_the_beginning_of_one_is_undecided(stop, text, length):
    assert Stops(stop).undecided(text) == length


@given(stop=st.lists(FEW, min_size=1, max_size=3), text=st.text("ab", max_size=8))
def test_undecided_is_exactly_what_some_future_can_take_back(stop, text):
    stops = Stops(stop)
    if stops.begin(text) is not None:
        return
    # The rest of each stop string, for every part of it that the text may end with.
    ends = [stops.begin(text + string[length:]) for string in stop for length in range(len(string))]
    begins = [len(text), *(begin for begin in ends if begin is not None)]
    assert min(begins) == len(text) - stops.undecided(text)


@given(stop=st.lists(FEW, min_size=1, max_size=3), text=st.text("ab", max_size=12))
def test_the_end_does_not_depend_on_how_much_comes_at_a_time(stop, text):
    stops = Stops(stop)
    one_by_one = (stops.begin(text[:length]) for length in range(len(text) + 1))
    assert stops.begin(text) == next((begin for begin in one_by_one if begin is not None), None)


def test_refusals():
    with pytest.raises(ValueError, match=r"a stop string can\'t be empty.*to stop nowhere, stop=\(\)"):
        Stops(["a", ""])
    with pytest.raises(ValueError, match="can't be empty"):
        Stops("")
    with pytest.raises(TypeError, match="stop must be a string or several, got int among them"):
        Stops([3])
