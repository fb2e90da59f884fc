"""`npn.unfuse`: equal to `nn.MultiheadAttention` whatever its arguments, old checkpoints, heads that come and go."""

import copy
import io
import itertools

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.modules import UnfusedAttention

CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 6, "vdim": 3},
    "other sizes, no bias": {"kdim": 6, "bias": False},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 3},
}
MASKS = {
    "none": {},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "padded": {"key_padding_mask": PADDED},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDED, "is_causal": True},
    "floats": {"attn_mask": torch.linspace(-1, 1, 25).view(5, 5), "key_padding_mask": -3.0 * PADDED},
    "each head": {"attn_mask": torch.linspace(-1, 1, 2 * 4 * 25).view(8, 5, 5)},
}


def attention(batch_first: bool = True, **options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(8, 4, batch_first=batch_first, **options)
    for parameter in fused.parameters():
        nn.init.normal_(parameter, std=0.5)  # no bias is zero
    return fused


def inputs(fused: nn.MultiheadAttention, batch_first: bool = True) -> list[Tensor]:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 5, n) for n in (8, fused.kdim, fused.vdim))
    return [x if batch_first else x.transpose(0, 1) for x in (q, k, v)]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_weights_and_gradients_are_those_of_the_fused_module(kind: str) -> None:
    for batch_first in (True, False):
        fused = attention(batch_first, **KINDS[kind])
        plain = npn.unfuse(copy.deepcopy(fused))
        assert isinstance(plain, UnfusedAttention) and plain.num_heads == 4 and plain.embed_dim == 8
        x = inputs(fused, batch_first)
        for mask, need in itertools.product(MASKS.values(), (True, False)):
            for average in (True, False) if need else (True,):
                a, b = (m(*x, need_weights=need, average_attn_weights=average, **mask) for m in (fused, plain))
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    before, after = (torch.autograd.grad(m(*x)[0].square().sum(), m.out_proj.weight)[0] for m in (fused, plain))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    single = [t[:, 0] for t in x]
    torch.testing.assert_close(fused(*single), plain(*single), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("need", [True, False])
def test_dropout_is_the_same_after_the_same_seed(need: bool) -> None:
    fused = attention(dropout=0.4)
    plain, x = npn.unfuse(copy.deepcopy(fused)), inputs(fused)
    found = []
    for module in (fused, plain):
        torch.manual_seed(3)
        found.append(module(*x, need_weights=need))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0][0], fused.eval()(*x)[0], atol=1e-3)
    torch.testing.assert_close(fused(*x), plain.eval()(*x), rtol=1e-6, atol=1e-6)


def test_the_hint_needs_its_mask() -> None:
    plain = npn.unfuse(attention())
    with pytest.raises(ConfigurationError, match=r"^is_causal is a hint about attn_mask, got no attn_mask; pass both$"):
        plain(*[torch.zeros(1, 5, 8)] * 3, is_causal=True)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_go_both_ways(kind: str) -> None:
    fused = attention(**KINDS[kind])
    state, keys = copy.deepcopy(fused.state_dict()), list(fused.state_dict())
    other = nn.Sequential(npn.unfuse(attention(**KINDS[kind])))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other.load_state_dict({f"0.{key}": value for key, value in state.items()}).missing_keys == []
    x = inputs(fused)
    torch.testing.assert_close(other[0](*x), fused(*x), rtol=1e-6, atol=1e-6)
    again = npn.fuse(copy.deepcopy(other))[0]
    assert type(again) is nn.MultiheadAttention and list(again.state_dict()) == keys
    assert all(torch.equal(again.state_dict()[key], state[key]) for key in keys)
    own = other.state_dict()
    assert not any("in_proj" in key for key in own)
    other.load_state_dict(own)  # its own keys load as well
    with pytest.raises(RuntimeError, match=r'Missing key.* "0.q_proj.weight"'):
        other.load_state_dict({key: value for key, value in own.items() if "q_proj" not in key})


def test_random_state_mode_hooks_and_frozen_parameters_are_kept() -> None:
    fused, seen = attention(), []
    fused.register_forward_hook(lambda module, *_: seen.append(type(module)))
    fused.in_proj_weight.requires_grad_(False)
    fused.eval()
    torch.manual_seed(5)
    plain = npn.unfuse(fused)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    plain(*inputs(fused))
    assert seen == [UnfusedAttention] and not plain.training
    assert not plain.q_proj.weight.requires_grad and plain.q_proj.bias.requires_grad
    assert plain.out_proj.weight is fused.out_proj.weight


def encoder(norm_first: bool = False, nested: bool = True) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 12, 0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


def test_the_layers_of_torch_work_in_every_mode() -> None:
    for norm_first in (True, False):
        fused = encoder(norm_first, nested=not norm_first)
        plain, x = npn.unfuse(copy.deepcopy(fused)), torch.randn(2, 5, 8)
        assert sum(isinstance(m, UnfusedAttention) for m in plain.modules()) == 2
        for train, grad in itertools.product((True, False), repeat=2):
            fused.train(train), plain.train(train)
            with torch.set_grad_enabled(grad):
                for options in ({}, {"mask": CAUSAL}, {"src_key_padding_mask": PADDED}):
                    a, b = fused(x, **options), plain(x, **options)
                    seen = ~PADDED if "src_key_padding_mask" in options else ...
                    torch.testing.assert_close(a[seen], b[seen], rtol=1e-5, atol=1e-5)
        back = npn.fuse(plain)
        assert back.use_nested_tensor == fused.use_nested_tensor
        with torch.no_grad():
            torch.testing.assert_close(back(x, src_key_padding_mask=PADDED), fused(x, src_key_padding_mask=PADDED))


def test_a_decoder_works_and_loses_heads_of_both_attentions() -> None:
    torch.manual_seed(0)
    fused = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 4, 12, 0.0, batch_first=True), 1)
    plain, x, memory = npn.unfuse(copy.deepcopy(fused)), torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(fused(x, memory), plain(x, memory), rtol=1e-5, atol=1e-5)
    plastic = npn.attach(plain, (x, memory))
    sizes = {group.name: group.size for group in plastic.groups}
    assert sizes == {"layers.0.self_attn.q_proj": 4, "layers.0.multihead_attn.q_proj": 4, "layers.0.linear1": 12}
    before = plain(x, memory)
    plastic.grow({name: 1 for name in sizes})
    torch.testing.assert_close(plain(x, memory), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "both"])
def test_heads_come_and_go_and_masked_is_compacted(kind: str) -> None:
    fused = attention(**KINDS[kind])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = fused, nn.Linear(8, 2)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.head(self.attention(q, k, v)[0])  # the averaged weights are made, and not used

    model, x = npn.unfuse(Model()), inputs(fused)
    plastic = npn.attach(model, tuple(x), skip="attention.out_proj")
    (group,) = plastic.groups
    assert group.name == "attention.q_proj" and group.size == 4
    plastic.close(group, [0, 2])
    masked = model(*x)
    plastic.compact()
    assert model.attention.num_heads == 2 and model.attention.head_dim == 2
    torch.testing.assert_close(model(*x), masked, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"^attention cannot be a nn.MultiheadAttention: it has 2 heads of 2 "):
        npn.fuse(model)
    assert isinstance(model.attention, UnfusedAttention)
    plastic.grow({group.name: 2})
    torch.testing.assert_close(model(*x), masked, rtol=1e-6, atol=1e-6)
    small = npn.fuse(plastic.export())
    assert type(small.attention) is nn.MultiheadAttention
    torch.testing.assert_close(small(*x), masked, rtol=1e-6, atol=1e-6)


def test_weights_of_heads_that_are_given_out_keep_their_number() -> None:
    plain = npn.unfuse(attention())

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.attention, self.down = nn.Linear(8, 6), plain, nn.Linear(6, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.attention(*[x + self.down(torch.relu(self.up(x)))] * 3)

    plastic = npn.attach(Model(), torch.zeros(2, 5, 8))
    assert [group.name for group in plastic.groups] == ["up"]
    assert any("attention.q_proj" in frozen.name for frozen in plastic.frozen)


def test_a_shrunk_model_is_saved_loaded_exported_and_scripted_as_any_other(tmp_path) -> None:
    model, x = npn.unfuse(encoder()), torch.randn(2, 5, 8)
    plastic = npn.attach(model, x)
    plastic.close("layers.0.self_attn.q_proj", [1, 2])
    plastic.compact()
    small = plastic.export().eval()
    npn.save(tmp_path / "small.npn", small)
    loaded = npn.load(tmp_path / "small.npn", npn.unfuse(encoder())).eval()
    torch.testing.assert_close(loaded(x), small(x))
    program = torch.export.export(small, (x,))
    assert not any("fused" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), small(x))
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), small(x))


def test_one_attention_in_two_places_stays_one() -> None:
    shared = attention()
    model = npn.unfuse(nn.ModuleList([shared, nn.ModuleDict({"again": shared})]))
    assert model[0] is model[1]["again"] and isinstance(model[0], UnfusedAttention)
    back = npn.fuse(model)
    assert back[0] is back[1]["again"] and type(back[0]) is nn.MultiheadAttention


def test_computed_weights_are_refused_before_anything_changes() -> None:
    model = nn.ModuleList([attention(), attention()])
    nn.utils.parametrizations.weight_norm(model[1], "in_proj_weight")
    with pytest.raises(
        ConfigurationError, match=r"^1 has weights that are computed, expected plain parameters; remove"
    ):
        npn.unfuse(model)
    assert type(model[0]) is nn.MultiheadAttention


def test_a_frozen_fused_attention_names_the_way_out() -> None:
    plastic = npn.attach(encoder(nested=False), torch.zeros(2, 5, 8))
    reasons = [frozen.reason for frozen in plastic.frozen if "self_attn.in_proj_weight[0]" in frozen.name]
    assert reasons and all(reason.endswith("npn.unfuse(model) before attach frees its heads") for reason in reasons)
