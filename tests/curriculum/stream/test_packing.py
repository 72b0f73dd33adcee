from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.stream.packing import pack

LENGTHS = st.lists(st.integers(1, 150), max_size=300)


@given(LENGTHS, st.integers(1, 120))
def test_every_text_is_in_one_row_in_order_and_no_row_is_too_full(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    assert all(sum(min(lengths[number], capacity) for number in row) <= capacity for row in rows)


@given(LENGTHS, st.integers(1, 120))
def test_no_two_rows_that_were_open_together_could_have_been_one(lengths, capacity):
    rows = pack(lengths, capacity)[-8:]  # open to the end
    used = [sum(min(lengths[number], capacity) for number in row) for row in rows]
    assert sum(2 * tokens <= capacity for tokens in used) <= 1
