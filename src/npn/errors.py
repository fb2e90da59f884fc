"""Errors that npn raises on purpose. Each message says what was expected, what came and what to do."""


class PlasticityError(Exception):
    """Base class of all npn errors."""


class ConfigurationError(PlasticityError, ValueError):
    """An argument lies outside the values that the method allows."""


class TraceError(PlasticityError):
    """Tracing could not follow the model, or found nothing that can be resized."""


class ResizeError(PlasticityError):
    """A resize was refused; the model and its optimizers are unchanged."""


class OptimizerError(PlasticityError):
    """An optimizer holds the wrong parameters, or state that a resize cannot move."""


class CheckpointError(PlasticityError):
    """A checkpoint is damaged, was not written by npn, or belongs to another model; nothing was loaded."""


class NonFiniteLossError(PlasticityError):
    """The loss became NaN or infinite; none of its gradient reached the parameters.

    Where an estimator runs two passes, that of the first one may have.
    """


class DistributedError(PlasticityError):
    """The processes that train one model together differ from each other."""
