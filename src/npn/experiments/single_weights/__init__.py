"""LeNets with gates on single weights, beside published figures."""
