"""Gates on single weights in checkpoints and files."""

import pytest
import torch

import npn
from npn.errors import CheckpointError, ConfigurationError

from .single_weights import data, mlp, optimizers, train


def everything(plastic, both):
    tensors = [*plastic.model.state_dict().values(), *(p.detach() for p in plastic.logits())]
    tensors += [t for gate in plastic.unstructured.values() for t in gate.tensors]
    for optimizer in both:
        tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return tensors


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    def start(seed):
        plastic = npn.attach(mlp(seed), torch.zeros(1, 5), unstructured="*", penalty=npn.Budget("weights", 0.4))
        plastic.k = 7.0
        return plastic, optimizers(plastic)

    def on(plastic, both):
        train(plastic, 5, both)
        plastic.compact(0.2)
        plastic.grow({"0": 1}, grace=2)
        train(plastic, 5, both)

    plastic, both = start(0)
    train(plastic, 5, both)
    plastic.close("2.weight", [0, 1, 8, 9])
    plastic.compact()
    plastic.close("0", [1])
    plastic.open("2.weight", [1], grace=7)
    plastic.compact()
    npn.save(tmp_path / "a.npn", plastic)
    again, others = start(1)
    npn.load(tmp_path / "a.npn", again)
    for a, b in zip(everything(plastic, both), everything(again, others), strict=True):
        assert torch.equal(a, b)
    on(plastic, both)
    npn.load(tmp_path / "a.npn", again)  # brings the random state back as well
    on(again, others)
    for a, b in zip(everything(plastic, both), everything(again, others), strict=True):
        assert torch.equal(a, b)


def test_masks_are_bits_and_plain_models_load_without_the_closed_weights(tmp_path):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    plastic.close("2.weight", [0, 5, 17])
    plastic.close("0", [2])
    npn.save(tmp_path / "a.npn", plastic)
    content = torch.load(tmp_path / "a.npn", weights_only=True)
    bits = {entry["name"]: entry["open"] for entry in content["weights"]}
    assert {name: (len(b), b.dtype) for name, b in bits.items()} == {
        "0.weight": (5, torch.uint8),
        "2.weight": (6, torch.uint8),
        "4.weight": (3, torch.uint8),
    }
    assert len(content["plastic"]["weights"]["2.weight"]["removed"]) == 6
    plain = npn.load(tmp_path / "a.npn", mlp(7))
    x, _ = data()
    torch.testing.assert_close(plain(x), plastic.model(x))
    assert plain[2].weight.view(-1)[[0, 5, 17]].tolist() == [0, 0, 0]


def test_a_checkpoint_of_other_single_weights_is_refused(tmp_path):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    npn.save(tmp_path / "a.npn", plastic)
    other = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2")
    with pytest.raises(CheckpointError, match=r"has gates on the single weights of \['0.weight', '2.weight', '4.weig"):
        npn.load(tmp_path / "a.npn", other)
    with pytest.raises(CheckpointError, match=r"the model on those of \[\]"):
        npn.load(tmp_path / "a.npn", npn.attach(mlp(), torch.zeros(1, 5)))
    with pytest.raises(ConfigurationError, match=r"expected single-weight gates of \{'2\.weight': \(6, 8\)\}"):
        other.load_state_dict(plastic.state_dict())
