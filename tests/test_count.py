"""Counts against hand counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn


def test_params():
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False))
    assert npn.count_params(model) == 55 + 10 + 10
    assert npn.count_params(model, biases=False) == 50 + 10
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert npn.count_params(tied) == 16 + 8
    for p in model[0].parameters():
        p.requires_grad_(False)
    assert npn.count_params(model) == 75, "frozen parameters are parameters"


@pytest.mark.parametrize(("model", "shape", "macs"), [
    (nn.Linear(10, 5), (1, 10), 50),
    (nn.Linear(10, 5), (3, 7, 10), 3 * 7 * 50),
    (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 6, 6), 8 * 3 * 9 * 36),
    (nn.Conv2d(3, 8, 3, stride=2), (2, 3, 7, 7), 2 * 8 * 3 * 9 * 9),
    (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 8 * 9 * 16),
    (nn.Conv2d(8, 12, 3, groups=4, dilation=2), (1, 8, 7, 7), 12 * 2 * 9 * 9),
    (nn.Conv1d(2, 4, 5), (1, 2, 12), 4 * 2 * 5 * 8),
    (nn.Conv3d(2, 4, 2), (1, 2, 4, 4, 4), 4 * 2 * 8 * 27),
    (nn.ConvTranspose2d(3, 5, 2, stride=2), (1, 3, 4, 4), 3 * 5 * 4 * 16),
    (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (1, 3, 4, 4), 0),
])  # fmt: skip
def test_macs_by_hand(model, shape, macs):
    assert npn.count_macs(model, torch.zeros(shape)) == macs


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def test_attention_products_count():
    q, k, v = (torch.zeros(2, 3, n, 8) for n in (5, 7, 7))
    assert npn.count_macs(Attention(), (q, k, v)) == 2 * 3 * 5 * 7 * 8 * 2
    assert npn.count_macs(Attention(), {"q": q, "k": k, "v": v}) == 2 * 3 * 5 * 7 * 8 * 2


@pytest.mark.parametrize("training", [True, False])
def test_fused_layers_count(training):
    """Recurrent and encoder layers run as one kernel; their products count all the same."""
    lstm, gru = nn.LSTM(3, 4, batch_first=True), nn.GRU(3, 4, bidirectional=True)
    assert npn.count_macs(lstm.train(training), torch.zeros(2, 5, 3)) == 2 * 5 * 4 * 4 * (3 + 4)
    assert npn.count_macs(gru.train(training), torch.zeros(5, 2, 3)) == 2 * 2 * 5 * 3 * 4 * (3 + 4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    assert npn.count_macs(layer, torch.zeros(2, 5, 8)) == 2 * (5 * (4 * 64 + 2 * 8 * 16) + 2 * 5 * 5 * 8)


def test_nothing_is_computed_or_changed(tiny, tools):
    spec = tiny["conv"]
    model, plain = spec.model(), spec.model()
    x, _ = spec.data()
    state = torch.get_rng_state()
    assert npn.count_macs(model, x[:1]) == 3 * 2 * 9 * 16 + 4 * 3 * 9 * 4 + 16 * 2
    assert tools.same(model, plain) and torch.equal(state, torch.get_rng_state()) and model.training
    assert not isinstance(model[0].weight, torch._subclasses.FakeTensor)


@pytest.mark.parametrize("k", [float("inf"), 2.0])
def test_attached_models_count_what_exists(tiny, k):
    spec = tiny["mlp"]
    model, plastic = spec.attach()
    x, _ = spec.data()
    plastic.k = k
    plastic.close("0", [1])
    assert npn.count_macs(model, x[:1]) == 12 + 12 + 6
    assert npn.count_macs(nn.Sequential(model, nn.Linear(2, 2)), x[:1]) == 30 + 4
    wanted = spec.masked_copy(model, {g.name: g.gate.mask for g in plastic.groups})(x)
    torch.testing.assert_close(model(x), wanted)
    assert npn.count_macs(plastic.export(), x[:1]) == 9 + 9 + 6
    plastic.compact()
    assert npn.count_macs(model, x[:1]) == 24


@pytest.mark.parametrize("training", [True, False])
def test_norms_that_average_all_batches_are_counted(training):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 2)), torch.zeros(3, 4)
    assert npn.count_macs(model.train(training), x) == 3 * (4 * 6 + 6 * 2)
    plastic = npn.attach(model, x)
    assert [g.size for g in plastic.groups] == [6] and plastic.structure.training is None
    assert npn.inspect(model, x).macs == 3 * (4 * 6 + 6 * 2), "with gates"
    assert model[1].momentum is None and int(model[1].num_batches_tracked) == 0


def test_one_example_through_a_batch_norm_in_train_mode_is_counted():
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.zeros(1, 6)
    assert npn.count_macs(model, x) == npn.inspect(model, x).macs == 6 * 12 + 12 * 3
    small = npn.prune(model, x, target=0.5, criterion="magnitude")
    assert npn.count_macs(small, x) == 54
    assert all(module.training for module in (*model.modules(), *small.modules()))


def test_inputs_that_do_not_fit_raise_without_a_log(caplog):
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))
    with pytest.raises(
        npn.errors.TraceError, match=r"^the forward pass failed on example_inputs at .*got \[2, 7\] X \[6, 12\]"
    ):
        npn.count_macs(model, torch.zeros(2, 7))
    with pytest.raises(npn.PlasticityError, match="the forward pass failed on example_inputs"):
        npn.attach(model, torch.zeros(2, 7))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]
    assert all(module.training for module in model.modules())
