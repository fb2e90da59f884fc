"""Forward passes that no trace can follow: the user's line, what PyTorch does there, and the way out."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import npn
from npn.errors import TraceError

PART = "or trace only the part of the model that lies before or after it: npn.attach(model.backbone, ...)"
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, some code, a layer."""

    def __init__(self, code):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        self.rnn, self.head = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)
        self.code = code

    def forward(self, x):
        return self.head(self.code(self, self.backbone(x)))


def packed(net, h):
    return net.rnn(pack_padded_sequence(h, (h[:, 0, 0] * 0).long() + 3, batch_first=True))[0].data


def nonzero(net, h):
    return h[h[:, 0, 0].nonzero()[:, 0]].reshape(2, 3, 6)  # all of the rows, not half of them


def masked(net, h):
    return h[h[:, 0, 0] > -9.0].reshape(2, 3, 6)


def unique(net, h):
    return h * len(torch.unique(h))


def listed(model, h):
    return torch.cat(h.split((h[0, :3] * 0 + h.shape[0] // 3).long().tolist()))


def likelihood(net, h):
    return h + F.gaussian_nll_loss(h, torch.zeros(6), F.softplus(h))


def decides(net, h):
    return h if h.sum() > 0 else -h


INDEXED = "nonzero(), x[mask] or torch.where(mask)"


@pytest.mark.parametrize(
    ("code", "what", "instead"),
    [
        (nonzero, INDEXED, "multiply by the mask, use torch.where(mask, a, b)"),
        (masked, INDEXED, "multiply by the mask, use torch.where(mask, a, b)"),
        (unique, "unique", "compute it outside of the model, pass it as an input"),
    ],
)
def test_shapes_that_depend_on_values(code, what, instead):
    line = f"{Path(__file__).name}:{code.__code__.co_firstlineno + 1}"
    message = (
        f"the shape of a tensor depends on values at {line}, which a traced graph cannot follow: {what}; expected "
        f"shapes that are the same for every input: {instead}, {PART}"
    )
    model = Net(code)
    with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
        npn.attach(model, X)
    plastic = npn.attach(model.backbone, X)  # the way out
    loss = plastic.backward(lambda: model(X).square().mean())
    assert [g.name for g in plastic.groups] == ["0"] and loss.isfinite()


@pytest.mark.parametrize("code", [decides, listed])
def test_decisions_of_the_users_code(code):
    line = f"{Path(__file__).name}:{code.__code__.co_firstlineno + 1}"
    message = (
        f"the forward pass decides by the value of a tensor at {line}, which a traced graph cannot follow; expected a "
        "computation that is the same for every input: use torch.where instead of if, tensors instead of .item() and "
        "float(), move logs and checks out of forward, or attach the parts of the model "
        "before and after this line separately, as npn.attach(model.backbone, ...)"
    )
    with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
        npn.attach(Net(code), X)


@pytest.mark.parametrize(
    ("code", "inside"),
    [(likelihood, "gaussian_nll_loss (functional.py:N)"), (packed, "pack_padded_sequence (rnn.py:N)")],
)
def test_decisions_of_torchs_own_code(code, inside):
    line = f"{Path(__file__).name}:{code.__code__.co_firstlineno + 1}"
    with pytest.raises(TraceError) as caught:
        npn.attach(Net(code), X)
    assert re.sub(r"\.py:\d+\)", ".py:N)", str(caught.value)) == (
        f"PyTorch's own {inside}, called at {line}, decides by the value of a "
        "tensor, which a traced graph cannot follow; pass it the argument that spares the decision if there is one, "
        f"{PART}"
    )


def test_masks_of_encoders_and_arguments_of_distributions_are_not_looked_at():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.inside, self.encoder = nn.Linear(4, 8), nn.TransformerEncoder(layer, 1)

        def forward(self, x):
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.encoder(self.inside(x), mask=mask)

    model = Encoder()
    plastic = npn.attach(model, X)
    assert [(g.name, g.size) for g in plastic.groups] == [("encoder.layers.0.linear1", 16)]
    plastic.close("encoder.layers.0.linear1", range(0, 16, 2))
    torch.testing.assert_close(plastic.export()(X), model(X))

    def drawn(net, h):
        return torch.distributions.Normal(h, F.softplus(h)).rsample()

    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile switches it off for good
    assert [g.name for g in npn.attach(Net(drawn), X).groups] == ["backbone.0", "backbone.2"]
    with pytest.raises(ValueError, match="to satisfy the constraint"):  # looked at again
        torch.distributions.Normal(0.0, -1.0)


def test_a_tensor_that_nobody_knows_of_is_named_with_the_way_out():
    kept = torch.zeros(2, 3, 6)

    def writes(net, h):
        kept[:] = h
        return kept

    line = f"{Path(__file__).name}:{writes.__code__.co_firstlineno + 1}"
    message = (
        f"the forward pass writes at {line} into a tensor that is neither parameter nor buffer of the model, which a "
        "trace cannot follow; register it with register_buffer (persistent=False keeps it out of the state_dict)"
    )
    with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
        npn.attach(Net(writes), X)
