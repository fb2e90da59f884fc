"""Scores of units without training gates: how much each matters to a network as it is."""

from npn._importance.fit import fit_to_budget
from npn._importance.gradients import mean_of_gradients
from npn._importance.scores import CRITERIA, ON_DATA, check_criterion, importance
from npn._importance.start import keep_probabilities, start_from

__all__ = [
    "CRITERIA",
    "ON_DATA",
    "check_criterion",
    "fit_to_budget",
    "importance",
    "keep_probabilities",
    "mean_of_gradients",
    "start_from",
]
