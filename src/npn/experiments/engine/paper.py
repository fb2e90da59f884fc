"""The paper's own recipe for its small networks: ARM, a price per unit, constant rates, one unit at a time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn, optim

import npn
from npn._utils.patterns import match_patterns
from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data
from npn.experiments.engine.building import attach, schedule, set_rate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.recipe import Recipe
from npn.penalty import CostTerm, Priced

PRESET = "paper"
SHARPNESS = {"sparsify": 7.0, "expand": 1.0}
LEARNING_RATE, BATCH_SIZE = 1e-3, 128
# settings that the recipe has none of
REST = {"penalty", "budget", "growth_init", "start_from", "weight_decay", "augment", "teacher", "like", "weights"}


@dataclass(frozen=True)
class Paper:
    """What the recipe is told about one network.

    Attributes:
        stages: mode -> epochs of each stage.
        prices: pattern of a group -> price of one of its units, in loss units.
        limit: pattern of a group -> the most units that it may grow to.
        milestone: share of the last stage after which the learning rate is a tenth.
    """

    stages: Mapping[str, tuple[int, ...]]
    prices: Mapping[str, float]
    limit: Mapping[str, int]
    milestone: float


def checked(options: Options, preset: str | None) -> bool:
    """Return whether a run follows the paper's recipe, after checking that nothing given contradicts it.

    Args:
        options: settings of the user.
        preset: "paper", or None for the experiment's own recipe.

    Raises:
        ConfigurationError: another preset, a mode that the paper has not, or a setting that the recipe has not.
    """
    if preset is None:
        return False
    if preset != PRESET:
        raise ConfigurationError(f'preset must be "paper", got {preset!r}')
    if options.mode is not None and options.mode not in SHARPNESS:
        raise ConfigurationError(
            f"the preset 'paper' is for the modes {' and '.join(SHARPNESS)}, got {options.mode!r}; leave it out"
        )
    given = [name for name, value in options.as_dict().items() if name in REST and value]
    if given:
        raise ConfigurationError(
            f"the preset 'paper' is a whole recipe, with prices of its own: leave out {', '.join(given)}"
        )
    return True


def standard(options: Options) -> dict[str, Any]:
    """Return the settings that a run of the paper's has by default.

    Args:
        options: settings of the user.
    """
    mode = options.mode or "sparsify"
    return {**STANDARD, "mode": mode, "k": SHARPNESS[mode], "estimator": "arm"}


def recipe(
    paper: Paper,
    model: nn.Module,
    data: Data,
    options: Options,
    measure: Callable[[npn.Plasticity], dict[str, Any]],
    snapshot: Callable[[nn.Module], dict[str, Tensor]],
    rate: float = LEARNING_RATE,
    **gated: Any,
) -> Recipe:
    """Make the recipe: one Adam rate for weights and gates, no decay, no path, no grace; units go below pi = 0.001.

    Args:
        paper: of the network.
        model: to train.
        data: on the model's device.
        options: complete settings.
        measure: see `Recipe`.
        snapshot: see `Recipe`.
        rate: learning rate of weights and gates.
        gated: further arguments of `npn.attach`.
    """
    assert options.mode
    plastic = attach(model, data.train.x[:2], options, UnitPrices(paper.prices), **gated)
    stages = schedule(options, paper.stages[options.mode])
    weights, gates = (optim.Adam(each, lr=rate) for each in (plastic.weights(), plastic.logits()))
    plastic.track(weights, gates)
    last = stages.stages[-1]
    growth = npn.Growth(units=1, limit=paper.limit, patience=stages.stages[1].epochs, grace=0, revive=None)

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Late in the last stage the rate is a tenth."""
        late = stage.name == last.name and position >= paper.milestone * last.epochs
        set_rate(weights, rate / 10 if late else rate)

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=growth if options.mode == "expand" else None,
        settle=0,
        step=step,
        snapshot=snapshot,
    )


@final
class UnitPrices(CostTerm):
    """A fixed price of a unit, whatever the sizes of the other layers: sum over groups of `price * sum_j pi_j`.

    Args:
        prices: pattern of a group -> price of one of its units, in loss units; the first match counts, and groups
            without a match cost nothing.

    Raises:
        ConfigurationError: a price is negative or infinite.
    """

    def __init__(self, prices: Mapping[str, float]) -> None:
        super().__init__("units")
        for value in prices.values():
            if not 0.0 <= value < math.inf:
                raise ConfigurationError(f"prices must be finite numbers >= 0, got {value!r}")
        self.prices = dict(prices)

    def bind(self, plastic: Priced) -> None:
        """Find the groups of the patterns.

        Args:
            plastic: the attached model.

        Raises:
            ConfigurationError: a pattern matches no group.
        """
        self._per_group = match_patterns(self.prices, [group.name for group in plastic.groups], "prices")

    def loss(self, plastic: Priced) -> Tensor:
        """Price of the present gates, (), differentiable in the logits.

        Args:
            plastic: the attached model, or its costs.
        """
        groups: Any = plastic.groups
        terms = [
            self._per_group[group.name] * group.gate.keep_probability().sum()
            for group in groups
            if group.name in self._per_group
        ]
        total: Tensor = sum(terms[1:], terms[0])
        return total
