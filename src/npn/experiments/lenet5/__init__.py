"""LeNet-5 on MNIST (the paper, section VI-B)."""
