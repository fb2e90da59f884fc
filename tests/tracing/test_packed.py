"""Recurrent layers that read packed sequences: the same units as on a padded batch, whatever the lengths."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import npn

from ..zoo.checks import check_grow, check_shrink

IDS = torch.randint(0, 20, (3, 4), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Embedding, layer, packed recurrent layers, mean over each sequence, two layers."""

    def __init__(self, layer, bidirectional, batch_first=True, in_order=True, total=None, layers=2):
        super().__init__()
        self.embedding, self.a = nn.Embedding(20, 6), nn.Linear(6, 7)
        self.rnn = layer(7, 5, layers, batch_first=batch_first, bidirectional=bidirectional)
        self.b, self.c = nn.Linear(5 * (1 + bidirectional), 4), nn.Linear(4, 3)
        self.batch_first, self.in_order, self.total = batch_first, in_order, total

    def forward(self, ids, lengths):
        x = torch.tanh(self.a(self.embedding(ids)))
        x = x if self.batch_first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths, batch_first=self.batch_first, enforce_sorted=self.in_order)
        y, found = pad_packed_sequence(self.rnn(packed)[0], batch_first=self.batch_first, total_length=self.total)
        y = y if self.batch_first else y.transpose(0, 1)
        return self.c(torch.tanh(self.b(y.sum(1) / found[:, None])))


@pytest.mark.parametrize(
    ("layer", "options", "lengths"),
    [
        (nn.LSTM, {"bidirectional": True, "in_order": False}, [1, 3, 2]),
        (nn.GRU, {"bidirectional": False}, [4, 3, 1]),
        (nn.RNN, {"bidirectional": False, "batch_first": False, "total": 5}, [3, 2, 2]),
    ],
)
def test_units_come_and_go(layer, options, lengths):
    torch.manual_seed(0)
    lengths = torch.tensor(lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is decided by the lengths
        plastic = npn.attach(Net(layer, **options), (IDS, lengths))
    assert plastic.sizes() == {"embedding": 6, "a": 7, "rnn": 5, "b": 4}
    second = copy.deepcopy(plastic)
    check_shrink(plastic, (IDS, lengths))
    check_grow(second, (IDS, lengths))


def test_other_lengths_and_a_training_step():
    torch.manual_seed(0)
    plastic = npn.attach(Net(nn.GRU, True, in_order=False, layers=1), (IDS, torch.tensor([4, 4, 4])))
    model, other = plastic.model, torch.tensor([1, 3, 2])
    plastic.k = 7.0
    assert plastic.backward(lambda: model(IDS, other).square().mean()).isfinite()
    assert all(gate.logits.grad is not None and gate.logits.grad.isfinite().all() for gate in plastic.gates.each)
    plastic.k = float("inf")
    plastic.close("rnn", [0, 3])
    masked = model(IDS, other)
    torch.testing.assert_close(plastic.export()(IDS, other), masked)


def test_rows_may_be_read_as_they_are_packed():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 2)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            return pad_packed_sequence(PackedSequence(self.b(torch.tanh(self.a(packed.data))), packed.batch_sizes))[0]

    x, lengths = torch.randn(2, 4, 6), [4, 2]
    plastic = npn.attach(Rows(), (x, lengths))
    assert plastic.sizes() == {"a": 7}
    check_shrink(plastic, (x, lengths))


def test_the_user_may_sort_and_list_the_lengths():
    class Sorted(Net):
        def forward(self, ids, lengths):
            lengths, order = lengths.sort(descending=True)
            x = torch.tanh(self.a(self.embedding(ids)))[order]
            hidden = self.rnn(pack_padded_sequence(x, lengths.tolist(), batch_first=True))[1]
            return self.c(torch.tanh(self.b(hidden[-1][order.argsort()])))

    torch.manual_seed(0)
    lengths, other = torch.tensor([2, 4, 3]), torch.tensor([1, 3, 4])
    with pytest.warns(UserWarning, match="decides by values of its inputs"):
        plastic = npn.attach(Sorted(nn.GRU, False), (IDS, lengths))
    assert plastic.sizes() == {"embedding": 6, "a": 7, "rnn": 5, "b": 4}
    plastic.close("rnn", [0, 3])
    masked = plastic.model(IDS, other)
    torch.testing.assert_close(plastic.export()(IDS, other), masked)


def test_macs_count_the_longest_sequence_and_pytorch_is_as_before():
    net = Net(nn.LSTM, False)
    found = [npn.count_macs(net, (IDS, torch.tensor(lengths))) for lengths in ([3, 3, 3], [3, 2, 1])]
    assert found[0] == found[1]
    assert "lstm" not in vars(torch._VF) and torch._VF.lstm is torch._C._VariableFunctions.lstm
