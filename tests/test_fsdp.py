"""Models whose parameters fully_shard has split over two processes: the same as on one process."""

import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import npn
from npn import distributed
from npn._utils.shards import full, is_shard, local
from npn.errors import CheckpointError, DistributedError

from .processes import together
from .sharding import EXAMPLE, GPT, TOKENS, assert_same, build, loss_of_all, state, train

# -- masks


def masked():
    plastic, weights, gates = build(penalty=npn.Penalty(weight=1e-3))
    losses = train(plastic, weights, gates, 2)
    plastic.k = 7.0
    for plastic.estimator in ("reinmax", "disarm", "double_cv"):
        losses += train(plastic, weights, gates, 2)
        losses += train(plastic, weights, gates, 1, parts=2)  # the second pass adds to the gradients of the first
    plastic.k = math.inf
    plastic.close("blocks.0.wide", [0, 4])
    losses += train(plastic, weights, gates, 2)
    losses.append(float(loss_of_all(plastic)))
    losses += train(plastic, weights, gates, 1)  # what the evaluation has gathered is not used any more
    distributed.check(plastic)
    return losses, state(plastic)


def test_training_under_masks_is_that_of_one_process():
    one = masked()
    assert_same(one, together(2, masked))
    assert one[0][-1] < one[0][0] - 0.3


def test_training_on_replicas_of_shards_is_that_of_one_process():
    """Two replicas (HSDP), each of which two processes share."""
    assert_same(masked(), together(4, masked))


# -- sizes


def resized():
    plastic, weights, gates = build(penalty=npn.Penalty(weight=1e-3))
    held = list(plastic.weights())
    losses = train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [0, 4, 5])
    plastic.close("blocks.1.q", [1])  # a head
    closed = float(loss_of_all(plastic))
    report = plastic.compact().changes
    assert float(loss_of_all(plastic)) == pytest.approx(closed, abs=1e-6)
    gradients = {name: full(p.grad) for name, p in plastic.model.named_parameters() if p.grad is not None}
    losses += train(plastic, weights, gates, 2)
    torch.manual_seed(distributed.rank())  # new rows would differ
    before = float(loss_of_all(plastic))
    report |= plastic.grow({"blocks.0.wide": 2, "blocks.1.wide": 3}, grace=2).changes
    assert float(loss_of_all(plastic)) == pytest.approx(before, abs=1e-6)
    plastic.k = 7.0
    losses += train(plastic, weights, gates, 3)
    distributed.check(plastic)
    assert all(ours is theirs for ours, theirs in zip(held, plastic.weights(), strict=True))
    assert all(is_shard(p) for p in held) == dist.is_initialized()
    lengths = [len(local(p)) for p in held]
    return losses, report, gradients | state(plastic), lengths, [p.shape for p in held]


def test_resizes_are_those_of_one_process():
    *one, lengths, shapes = resized()
    first, other = together(2, resized)
    assert_same(one, [first[:3], other[:3]])
    assert one[1] == {"blocks.0.wide": (6, 8), "blocks.1.wide": (9, 12), "blocks.1.q": (3, 2)}
    assert {name.rpartition(".")[2] for name in one[2]} >= {"momentum_buffer", "exp_avg", "exp_avg_sq", "grad"}
    assert first[4] == other[4] == shapes
    assert first[3] == [-(-length // 2) for length in lengths]  # each process has its rows only
    assert other[3] == [length // 2 for length in lengths]


def test_resizes_of_replicas_are_those_of_one_process():
    *one, lengths, _ = resized()
    every = together(4, resized)
    assert_same(one, [each[:3] for each in every])
    assert every[0][3] == every[2][3] == [-(-length // 2) for length in lengths]
    assert every[1][3] == every[3][3] == [length // 2 for length in lengths]


def failing():
    """A resize that fails at its end, and one that is refused; returns the state around each, and what was said."""
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [3])
    seen, said = [state(plastic)], []
    with mock.patch("npn.surgery.apply.check_shapes", side_effect=RuntimeError("at the end")):
        try:
            plastic.compact()
        except RuntimeError as error:
            said.append(str(error))
    seen.append(state(plastic))
    losses = train(plastic, weights, gates, 1)
    with mock.patch.object(torch.distributed.fsdp._fully_shard._fsdp_param, "FSDPParam", None):
        try:
            plastic.compact()
        except DistributedError as error:
            said.append(str(error))
    plastic.compact()
    return seen, said, losses + train(plastic, weights, gates, 1)


def whole():
    """The same without a failure."""
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [3])
    losses = train(plastic, weights, gates, 1)
    plastic.compact()
    return losses + train(plastic, weights, gates, 1)


def test_a_failed_resize_changes_nothing():
    losses = whole()
    for (before, after), said, others in together(2, failing):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert others == pytest.approx(losses, rel=1e-4)
        assert said == [
            "at the end",
            f"fully_shard of torch {torch.__version__} is built otherwise than in 2.11 and 2.13, which npn knows: "
            "'NoneType' object is not callable. Use one of these, or npn.distributed.wrap",
        ]


# -- copies and files


def written(path):
    plastic, weights, gates = build()
    train(plastic, weights, gates, 2)
    plastic.close("blocks.0.wide", [0, 4, 5])
    plastic.compact()
    plastic.close("blocks.1.wide", [2])  # stays, closed
    train(plastic, weights, gates, 1)
    weights.zero_grad()
    plain = plastic.export()
    npn.save(path / "file.npn", plastic)
    npn.save_folder(path / "folder", plastic)
    small = type(plain), [type(p) for p in plain.parameters()], plain(TOKENS), dict(plain.state_dict())
    with torch.no_grad():
        logits = plastic.model(TOKENS)
    return state(plastic), small, logits, more(plastic, weights, gates)


def more(plastic, weights, gates):
    plastic.k = 7.0
    return train(plastic, weights, gates, 2)


def read(path, *names):
    plastic, weights, gates = build(seed=5)
    found = []
    for name in names:
        npn.load(path / name, plastic)  # the second time into sizes that are right already
        distributed.check(plastic)
        found.append((state(plastic), more(plastic, weights, gates)))
        plastic.k = math.inf
        weights.zero_grad()
    return found


def test_files_and_folders_go_on_with_any_number_of_processes(tmp_path):
    both, one, pairs = (tmp_path / name for name in ("both", "one", "pairs"))
    results = {both: together(2, written, both)[0], one: written(one), pairs: together(4, written, pairs)[0]}
    for path, (saved, (kind, kinds, logits, plain), masked, losses) in results.items():
        assert kind is GPT and set(kinds) == {nn.Parameter}
        torch.testing.assert_close(logits, masked, rtol=1e-4, atol=1e-5)
        assert plain["blocks.0.wide.weight"].shape == (6, 6) and plain["blocks.1.narrow.weight"].shape == (6, 8)
        names = ("file.npn", "folder") if path is both else ("folder", "file.npn")
        for loaded, others in (
            found
            for each in (read(path, *names), *together(4 if path is one else 2, read, path, *names))
            for found in each
        ):
            assert loaded.keys() == saved.keys()
            assert all(torch.equal(saved[name], value) for name, value in loaded.items())
            assert others == pytest.approx(losses, rel=1e-4)
        model = npn.load(path / "folder", GPT())
        torch.testing.assert_close(model(TOKENS), masked, rtol=1e-4, atol=1e-5)
        for part in (path / "folder").glob("*.distcp"):
            part.unlink()
        with pytest.raises(
            CheckpointError, match=r"cannot be read as a checkpoint: [^;]+; it is damaged or incomplete"
        ):
            npn.load(path / "folder", GPT())
        (path / "folder" / "npn.pt").unlink()
        with pytest.raises(CheckpointError, match=r"^there is no checkpoint at .*folder"):
            npn.load(path / "folder", GPT())


# -- other models


class Tied(GPT):
    def __init__(self):
        super().__init__()
        self.head.weight = self.tokens.weight
        self.blocks[1].narrow.weight.requires_grad_(False)  # read under masks, and not trained


def tied():
    """Gates on the stream under its norms, tied and frozen weights, blocks sharded by the user and kept whole."""
    torch.manual_seed(0)
    plastic = npn.attach(Tied(), EXAMPLE, streams=True, penalty=npn.Penalty(weight=1e-3))
    if dist.is_initialized():
        fully_shard(list(plastic.model.blocks), reshard_after_forward=False)
        assert distributed.shard(plastic) is plastic.model
    trained = [p for p in plastic.weights() if p.requires_grad]
    weights, gates = torch.optim.AdamW(trained, lr=1e-2), torch.optim.Adam(plastic.logits(), lr=0.1)
    plastic.track(weights, gates)
    plastic.k = 7.0
    losses = train(plastic, weights, gates, 3)
    plastic.close("blocks.0.out", [3])  # a channel of the stream
    plastic.close("blocks.1.wide", [0, 1])
    plastic.k = math.inf
    losses += train(plastic, weights, gates, 1)
    table = plastic.masked_weights.table
    losses.append(float(loss_of_all(plastic)))  # what the root gathers is masked, too,
    assert plastic.masked_weights.table is table  # and so are the shards, from which it gathers
    sizes = plastic.compact().changes
    losses += train(plastic, weights, gates, 2)
    assert plastic.model.head.weight is plastic.model.tokens.weight
    assert plastic.export().head.weight.shape == (11, 5)
    return losses, sizes, state(plastic)


def test_streams_tied_and_frozen_weights():
    one = tied()
    assert one[1] == {"blocks.0.out": (6, 5), "blocks.1.wide": (9, 7)}
    assert_same(one, together(2, tied))
