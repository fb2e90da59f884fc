"""Gates follow a model whose parameters are replaced or moved, and old graphs keep their masks."""

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import CheckpointError, ConfigurationError, OptimizerError

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def attached(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, npn.attach(model, torch.zeros(2, 3), **options), torch.randn(5, 3)


def test_replaced_parameters_are_masked():
    model, plastic, x = attached()
    plastic.close("0", [0, 2])
    expected = model(x)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    torch.testing.assert_close(model(x), expected)
    plastic.k = 7.0
    plastic.backward(lambda: model(x).square().mean())
    assert model[2].weight.grad is not None and plastic.logits()[0].grad is not None


def test_a_swapped_layer_of_another_size_is_refused():
    model, plastic, x = attached()
    plastic.close("0", [0])
    model[2] = nn.Linear(5, 2)
    with pytest.raises(npn.PlasticityError, match=r"2\.weight has shape \(2, 5\) where \(2, 4\) was planned"):
        model(x)


def test_a_late_backward_is_that_of_its_own_call():
    model, plastic, x = attached()
    plastic.close("0", [1])
    late = model(x).square().sum()
    plastic.backward(lambda: model(x).square().mean())
    model.zero_grad()
    late.backward()
    assert bool((model[2].weight.grad[:, 1] == 0).all()) and bool((model[2].weight.grad[:, 0] != 0).all())


def test_reopened_units_get_gradients_again():
    model, plastic, x = attached()
    plastic.close("0", [1])
    model(x).square().sum().backward()
    plastic.open("0", [1])
    model.zero_grad()
    plastic.backward(lambda: model(x).square().mean())
    assert bool((model[2].weight.grad[:, 1] != 0).all())


def test_double_precision_after_attach():
    model, plastic, x = attached()
    plastic.k = 7.0
    plastic.backward(lambda: model(x).square().mean())
    model.double()
    model.zero_grad()
    plastic.backward(lambda: model(x.double()).square().mean())
    assert model[2].weight.grad.dtype == torch.float64


def test_a_plain_model_keeps_closed_units_absent(tmp_path):
    model, plastic, x = attached()
    plastic.close("0", [0, 3])
    npn.save(tmp_path / "c.npn", plastic)
    torch.manual_seed(1)
    plain = npn.load(tmp_path / "c.npn", nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    torch.testing.assert_close(plain(x), model(x))


def test_another_gate_function_is_refused(tmp_path):
    _, plastic, _ = attached(function="hard_sigmoid")
    npn.save(tmp_path / "c.npn", plastic)
    _, other, _ = attached()
    message = r"has gates of HardSigmoid\(\), these are Sigmoid\(\); attach with the same function"
    with pytest.raises(CheckpointError, match=message):
        npn.load(tmp_path / "c.npn", other)


def test_a_non_finite_loss_names_the_last_checkpoint(tmp_path):
    model, plastic, x = attached()
    npn.save(tmp_path / "good.npn", plastic)
    with pytest.raises(npn.PlasticityError, match=r"the loss is nan; .* go back to the last checkpoint, .*good\.npn"):
        plastic.backward(lambda: model(x).mean() * float("nan"))
    assert model[0].weight.grad is None


def test_an_optimizer_that_was_never_tracked():
    model, plastic, x = attached()
    forgotten = torch.optim.Adam(plastic.weights())
    plastic.backward(lambda: model(x).square().mean())
    forgotten.step()
    plastic.close("0", [0])
    before = model[0].weight.shape
    message = r"Adam keeps state of 0\.weight and 3 more, but was never tracked: .* Call plastic\.track"
    with pytest.raises(OptimizerError, match=message):
        plastic.compact()
    assert model[0].weight.shape == before
    plastic.track(forgotten)
    assert plastic.compact().changes == {"0": (4, 3)}


def test_closing_a_whole_layer_is_said_aloud_and_leaves_its_likeliest_unit():
    model, plastic, x = attached()
    with pytest.warns(UserWarning, match=r"every unit of '0' is closed; unit 0 stays open"):
        plastic.close("0", range(4))
    expected = model(x)
    assert plastic.sizes() == {"0": 1}
    plastic.compact()
    torch.testing.assert_close(model(x), expected)
    assert model[0].weight.shape == (1, 3)


def test_inputs_on_another_device():
    model = nn.Linear(3, 4)
    with pytest.raises(npn.PlasticityError, match=r"example_inputs are on meta, the model is on cpu; move one"):
        npn.attach(model, torch.zeros(2, 3, device="meta"))


def test_missing_example_inputs():
    with pytest.raises(
        npn.PlasticityError, match=r"example_inputs is missing: expected a tensor, a tuple .* or a dict"
    ):
        npn.attach(nn.Linear(3, 4), None)


def test_nothing_to_resize():
    message = r"nothing in the model can be resized: weight\[0\]: it is the model's output"
    with pytest.raises(npn.PlasticityError, match=message):
        npn.attach(nn.Linear(3, 4), torch.zeros(2, 3))


def test_a_budget_out_of_reach():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(npn.PlasticityError, match=r"with one unit left in every group the model still costs 8 of 26"):
        npn.attach(model, torch.zeros(2, 3), penalty=npn.Budget("params", 5))


class InPlace(nn.Module):
    """It changes what autograd has kept of `exp`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.exp(self.first(x))
        y = self.second(h)
        h += 1
        return y


def test_a_change_in_place_of_what_is_kept_is_an_error_under_masks_too() -> None:
    model, x = InPlace(), torch.randn(2, 3)
    plastic = npn.attach(model, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    plastic.close("first", [0, 1])
    with pytest.raises(ConfigurationError, match=r"changed in place, as h in h \+= 1"):
        model(x).sum().backward()
