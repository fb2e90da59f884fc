"""A comparison of the gradient estimators on LeNet-5."""
