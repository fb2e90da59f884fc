import pytest
import torch

from npn.errors import ConfigurationError
from npn.functional import (
    exact_expectation,
    exact_gradient,
    keep_probability,
    logits_for,
    product_cost,
    shared_unit_correction,
)

F64 = torch.float64
# A net 3 inputs -> group A (4 units) -> group B (3 units, each 2 features after a flatten) -> 5 outputs:
# conv A x 3 x 9 with bias, conv B x A x 9 (at 6 positions), linear 5 x 2B with bias.
SIZES = (4, 3)
WEIGHT = torch.tensor([9.0, 1.0, 54.0, 1.0, 5.0], dtype=F64)
CONSTANT = torch.tensor([[0, 3], [0, 1], [0, 0], [5, 0], [1, 1]], dtype=F64)
COUNTS = torch.zeros(5, 2, 2, dtype=F64)
COUNTS[0, 0, 0] = COUNTS[1, 0, 0] = COUNTS[2, 1, 0] = 1  # A: rows, bias, columns
COUNTS[2, 0, 1] = 1  # B: rows
COUNTS[3, 1, 1] = 2  # B: two columns each
PI = torch.tensor([0.0, 0.2, 0.9, 1.0, 0.5, 0.05, 0.95], dtype=F64)


def group_sums(z):
    return torch.stack([part.sum() for part in z.split(SIZES)])


def elements_kept(z):
    """The cost counted element by element."""
    a, b = z.split(SIZES)
    kept = torch.ones(4, 3, 9, dtype=F64) * a[:, None, None]
    bias = torch.ones(4, dtype=F64) * a
    between = torch.ones(3, 4, 54, dtype=F64) * b[:, None, None] * a[None, :, None]
    read = torch.ones(5, 6, dtype=F64) * b.repeat_interleave(2)
    return kept.sum() + bias.sum() + between.sum() + read.sum() + 5


def expected(pi):
    return product_cost(group_sums(pi), WEIGHT, CONSTANT, COUNTS)


def test_cost_of_a_net_is_the_mean_over_all_masks():
    torch.testing.assert_close(expected(PI), exact_expectation(elements_kept, PI))


def test_cost_with_every_gate_open_is_the_size_of_the_net():
    assert expected(torch.ones(7, dtype=F64)).item() == 4 * 3 * 9 + 4 + 3 * 4 * 54 + 5 * 6 + 5


def test_a_pruned_neighbour_is_not_paid_for():
    no_a = torch.cat([torch.zeros(4, dtype=F64), torch.ones(3, dtype=F64)])
    assert expected(no_a).item() == 5 * 6 + 5


@pytest.mark.parametrize("function", ["sigmoid", "hard_sigmoid", "shifted_sigmoid"])
def test_gradient_of_the_cost_is_the_gradient_over_all_masks(function):
    phi = logits_for(torch.tensor([0.02, 0.2, 0.9, 0.98, 0.5, 0.05, 0.95], dtype=F64), 7.0, function)
    phi[0] = -1.0  # closed for good under the hard sigmoid
    phi.requires_grad_()
    expected(keep_probability(phi, 7.0, function)).backward()
    torch.testing.assert_close(phi.grad, exact_gradient(elements_kept, phi.detach(), 7.0, function))


def test_gradient_where_a_whole_group_is_closed():
    sums = torch.tensor([0.0, 0.0], dtype=F64, requires_grad=True)
    product_cost(sums, WEIGHT, CONSTANT, COUNTS).backward()
    assert sums.grad.tolist() == [9 * 3 + 1, 5 * 2]


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_any_number_of_axes(axes):
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(2, generator=generator, dtype=F64)
    constant = torch.rand(2, axes, generator=generator, dtype=F64)
    counts = torch.zeros(2, axes, 3, dtype=F64)
    for axis in range(axes):
        counts[:, axis, axis] = torch.rand(2, generator=generator, dtype=F64)
    pi = torch.tensor([0.3, 0.8, 0.5], dtype=F64)  # three groups of one unit, each on an axis of its own

    def one(z):
        return (weight * torch.stack([constant[:, a] + counts[:, a, a] * z[a] for a in range(axes)]).prod(0)).sum()

    def none(z):
        return weight.sum()

    torch.testing.assert_close(product_cost(pi, weight, constant, counts), exact_expectation(one if axes else none, pi))


def test_one_group_on_both_axes_needs_the_correction():
    """A 2-fold square: 3 + 2 n rows and 1 + n columns from the same n units."""
    pi = torch.tensor([0.1, 0.5, 0.9, 0.7], dtype=F64)
    weight, constant = torch.tensor([1.5], dtype=F64), torch.tensor([[3.0, 1.0]], dtype=F64)
    counts = torch.tensor([[[2.0], [1.0]]], dtype=F64)

    def square(z):
        rows = torch.cat([torch.ones(3, dtype=F64), z.repeat_interleave(2)])
        columns = torch.cat([torch.ones(1, dtype=F64), z])
        return 1.5 * torch.outer(rows, columns).sum()

    product = product_cost(pi.sum()[None], weight, constant, counts)
    exact = exact_expectation(square, pi)
    torch.testing.assert_close(product + shared_unit_correction(pi, weight * 2 * 1), exact)
    assert exact - product > 1  # what is missing without it


def test_correction_takes_a_weight_per_unit_and_has_a_gradient():
    pi = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=F64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    correction = shared_unit_correction(pi, weight)
    torch.testing.assert_close(correction.item(), 2 * 0.1875 + 3 * 0.25)
    correction.backward()
    torch.testing.assert_close(pi.grad, weight * (1 - 2 * pi.detach()))


def test_integer_tables_follow_the_dtype_of_the_gates():
    table = WEIGHT.long(), CONSTANT.long(), COUNTS.long()
    for dtype in (torch.float32, F64):
        cost = product_cost(group_sums(PI.to(dtype)), *table)
        assert cost.dtype == dtype and cost.shape == ()
        torch.testing.assert_close(cost.double(), expected(PI), rtol=1e-6, atol=0)
    assert product_cost(group_sums(PI.float()), WEIGHT, CONSTANT, COUNTS).dtype == F64


def test_values_are_never_read_on_the_host():
    sums = torch.empty(2, device="meta", dtype=F64, requires_grad=True)  # reading a value of a meta tensor raises
    product_cost(sums, WEIGHT.to("meta"), CONSTANT.to("meta"), COUNTS.to("meta")).backward()
    assert sums.grad.shape == (2,)


@pytest.mark.parametrize("wrong", ["sums", "weight", "constant", "counts"])
def test_shapes_must_fit(wrong):
    table = {"sums": torch.zeros(2), "weight": WEIGHT, "constant": CONSTANT, "counts": COUNTS}
    table[wrong] = table[wrong].unsqueeze(0)
    with pytest.raises(ConfigurationError, match=r"expected group_sums \(G,\), weight \(T,\), constant \(T, A\)"):
        product_cost(*table.values())
