"""The same model half-pruned by Torch-Pruning: does it run afterwards, and does it equal its own masked net?"""

from typing import Any

import torch
from torch import nn

from compat import numbers
from compat.stubs import load_torchvision

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # one column of the weight per unit that is read


def half_pruned(model: nn.Module, masked: nn.Module, inputs: Any) -> dict[str, Any]:
    """Prune half of every layer's outputs with Torch-Pruning's generic settings, the last layer left out.

    In the copy the coefficients that read a pruned unit are set to zero. Where every pruned unit is read by linear and
    plain convolution layers only, the two must agree.

    Args:
        model: is pruned.
        masked: a copy of it.
        inputs: one small batch.

    Returns:
        `runs`, `left` (share of the parameters), `error` against the masked copy, or None where that is not comparable,
        `problem` in one line.
    """
    load_torchvision()
    import torch_pruning

    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = masked.config.use_cache = False
    before = sum(p.numel() for p in model.parameters())
    names = {id(module): name for name, module in model.named_modules()}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last_layer(model, inputs)],
        forward_fn=numbers.outputs,  # a list of tensors, whatever holds them in the model's answer
    )
    left: dict[str, list[int]] = {}
    comparable = True
    for group in pruner.step(interactive=True):
        for item in group.items:
            handler, layer = item.dep.handler, item.dep.target.module
            if handler.__name__ != "prune_in_channels":  # also of layers whose inputs and outputs are the same channels
                continue
            comparable &= isinstance(layer, PLAIN) and getattr(layer, "groups", 1) == 1
            if comparable:
                name, gone = names[id(layer)], set(item.idxs)
                weight = masked.get_submodule(name).weight
                columns = left.setdefault(name, list(range(weight.shape[1])))
                with torch.no_grad():
                    weight[:, [columns[i] for i in gone]] = 0
                left[name] = [column for i, column in enumerate(columns) if i not in gone]
        group.prune()
    after = sum(p.numel() for p in model.parameters())
    result: dict[str, Any] = {"left": round(after / before, 4), "error": None}
    with torch.no_grad():
        try:
            found = numbers.outputs(model, inputs)
        except Exception as error:
            return result | {"runs": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
        if comparable:
            result["error"] = float(f"{numbers.relative_error(numbers.outputs(masked, inputs), found):.1e}")
    return result | {"runs": True}


def last_layer(model: nn.Module, inputs: Any) -> nn.Module:
    """The linear or convolution layer that is called last."""
    called: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, PLAIN)]
    hooks = [layer.register_forward_hook(lambda module, *_: called.append(module)) for layer in layers]
    with torch.no_grad():
        numbers.outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    return called[-1]
