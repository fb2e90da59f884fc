"""What is said when processes that train one model differ."""

from unittest import mock

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import npn
from npn import distributed
from npn.errors import ConfigurationError, DistributedError

from .parallel import ADVICE, build, everywhere, step
from .processes import together


def message(action):
    """The error of this process; the same on all."""
    try:
        action()
    except DistributedError as error:
        assert len(set(everywhere(str(error)))) == 1
        return str(error)
    return None


def differences():
    plastic, weights, gates = build(penalty=npn.Budget(cost="params", target=0.9))
    model = distributed.wrap(plastic)
    step(plastic, model, weights, gates)
    other = distributed.rank() == 1
    said = []

    def check():
        said.append(message(lambda: distributed.check(plastic)))

    check()
    plastic.k = 5.0 if other else 7.0
    check()
    plastic.k = 7.0
    gate = plastic.groups[1].gate
    for tensor in (gate.logits, gate.grace, plastic.penalty.multiplier, plastic.model[2].weight):
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] += other
        check()
        with torch.no_grad():
            tensor.copy_(before)
    check()
    plastic.close("0", [0, 1] if other else [0])
    said.append(message(plastic.compact))
    plastic.open("0", [0, 1])
    said.append(message(lambda: plastic.grow({"2": 2 if other else 1})))
    assert (plastic.model[0].out_features, plastic.model[2].out_features) == (12, 8)  # nothing has changed
    with mock.patch("npn.resizing.planning.assert_same"), mock.patch("npn.resizing.carrying_out.broadcast"):
        plastic.grow({"2": 2 if other else 1})
    check()
    return said


def test_what_differs_is_named():
    said, same = together(2, differences)
    assert said == same

    def differs(name, values=""):
        return f"{name} must be the same on every process, but differs between 0 and 1{values}{ADVICE}"

    assert said[:4] == [
        None,
        differs("k", ": 7.0 and 5.0"),
        differs("logits of group '2'"),
        differs("grace of group '2'"),
    ]
    start = "the penalty's state must be the same on every process, but differs between 0 and 1: {'type': 'Budget', "
    assert said[4].startswith(start) and said[4].endswith(ADVICE)
    assert said[5:] == [
        differs("the value of 2.weight"),
        None,
        differs("what compact removes", ": {'0': [0]} and {'0': [0, 1]}"),
        differs("what grow adds", ": {'2': 1} and {'2': 2}"),
        differs("the size of group '2'", ": 9 and 10"),
    ]


def wrapped_once():
    """The error of a step after a resize, through a wrapper that was made before; nothing has come apart."""
    plastic, weights, gates = build()
    model = DistributedDataParallel(plastic.model)
    step(plastic, model, weights, gates)
    distributed.check(plastic)
    plastic.close("0", [3])
    plastic.compact()
    with pytest.raises(ConfigurationError) as error:
        step(plastic, model, weights, gates)
    distributed.check(plastic)
    return str(error.value)


def test_a_wrapper_that_misses_a_resize_is_found_out():
    said = (
        "this DistributedDataParallel was made before a resize: it no longer averages gradients, and the processes "
        "would come apart. Use model = npn.distributed.wrap(plastic), which wraps anew after each resize, or make a "
        "new one yourself after each compact, grow and load"
    )
    assert together(2, wrapped_once) == [said, said]
