"""Every error that npn raises on purpose: what was expected, what came, what to do."""


class PlasticityError(Exception):
    """Base of all npn errors."""


class ConfigurationError(PlasticityError, ValueError):
    """An argument is outside what the method allows."""


class TraceError(PlasticityError):
    """The model could not be followed, or nothing in it can be resized."""


class ResizeError(PlasticityError):
    """A resize was refused; the model and its optimizers are as they were."""


class OptimizerError(PlasticityError):
    """An optimizer holds the wrong parameters, or state that a resize cannot carry along."""


class CheckpointError(PlasticityError):
    """A checkpoint is damaged, foreign or belongs to another model; nothing was loaded."""


class NonFiniteLossError(PlasticityError):
    """The loss became NaN or infinite; no gradient of it reached the parameters."""


class DistributedError(PlasticityError):
    """Processes that train one model together have come to differ."""
