"""Label tensors: the unit of each element of a value, and the ledger of labels that are one unit."""
