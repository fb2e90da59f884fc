"""The model at other sizes, on fake tensors: what resizes change in it, and which of them its code does not allow."""
