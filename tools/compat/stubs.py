"""Stand-ins for the compiled operators that torchvision's wheel cannot load beside a CPU build of torch."""

_KEPT = []  # the operators live as long as the library object


def load_torchvision() -> None:
    """Import torchvision; where its compiled part is missing, declare the operators that it registers kernels for.

    No model of the sweep calls them; without the declarations the import itself fails.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision  # noqa: F401
