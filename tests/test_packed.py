"""What a packed call of `unrolled.LSTM` does and leaves out; its values are in `test_drop_in.py`."""

from __future__ import annotations

import torch
from paths import assert_equal, counted
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from worlds import needs_library

from unrolled import LSTM


@needs_library
def test_what_is_packed_is_in_order_and_not_checked_again() -> None:
    ours, x = LSTM(3, 4, 2, batch_first=True), torch.randn(2, 5, 3)
    lengths = torch.tensor([5, 2])
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    with torch.no_grad(), counted() as ran:
        output, state = ours(packed)
    assert (ran["checked_range"], ran["states"]) == (0, 2)
    with torch.no_grad(), counted() as ran:
        padded, same = ours(x, lengths=lengths)
    assert (ran["checked_range"], ran["states"]) == (2, 2)
    assert_equal([pad_packed_sequence(output, batch_first=True)[0], *state], [padded, *same])
