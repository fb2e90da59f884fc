"""LeNet-300-100 on MNIST, with gates on single weights."""
