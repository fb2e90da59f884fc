"""Evaluation of parts of a model under its masks."""

from contextlib import AbstractContextManager

from npn._utils.validation import HANDLE, instance
from npn.plasticity import Plasticity


def masked(plastic: Plasticity) -> AbstractContextManager[None]:
    """Keep closed units absent inside, whichever part or method of the model is called.

    `model(x)` masks the weights by itself, since the masks are put on in the model's own call. Other ways in pass it
    by: `model.generate(...)` of some encoder-decoders, `model.loss(x, y)`, `model.encoder(x)`. The context masks the
    weights once, by the deterministic mask of the moment, and gives them back at its end; it is for evaluation, by any
    number of threads. Inside `plastic.backward` masks are on anyway. Parameters that are read inside are masked copies:
    take states, averages and norms of them outside.

    Args:
        plastic: the result of `npn.attach`.

    Raises:
        ConfigurationError: `plastic` is no handle; inside, a step of `plastic.backward` or of an optimizer, a state
            that is saved or loaded, or a change of the weights, which would be lost. A resize raises `ResizeError`.

    Example:
        >>> import npn, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plastic, x = npn.attach(model, torch.randn(3, 4)), torch.randn(5, 4)
        >>> plastic.close("0", range(5))
        >>> with masked(plastic), torch.no_grad():
        ...     y = model[2](model[1](model[0](x)))
        >>> torch.allclose(y, plastic.export()(x))
        True
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    return plastic._call.held()
