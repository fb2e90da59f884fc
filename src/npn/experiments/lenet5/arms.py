"""Ways to train LeNet-5 that the bench compares."""

from npn.experiments.engine.campaign import STARTS_COMPARED, Arm, arms_of_starts

SMALLER, AUGMENTED = (1600.0, 2750.0, 5320.0), {"augment": True}
TAUGHT = {**AUGMENTED, "weight_decay": 0.004}  # by validation data: results/lenet5-settings-taught.md
MORE_DECAY = {"weight_decay": 0.087}  # twice that of the recipe, for growth: results/lenet5-settings-expand.md
LONGER = {**MORE_DECAY, "epochs": "126"}  # twice as many; a grown net costs little, so that it can afford them
ARMS = {
    "sparsify": Arm("sparsify", SMALLER),
    "expand": Arm("expand", (2304.0,)),
    **arms_of_starts((2304.0,)),
    "expand-decay": Arm("expand", (2304.0,), MORE_DECAY),
    "expand-longer": Arm("expand", (2304.0,), LONGER),
    "scratch": Arm("scratch", (1600.0, 2304.0, 2750.0, 5320.0)),
    "scratch-decay": Arm("scratch", (2304.0,), MORE_DECAY),
    "scratch-longer": Arm("scratch", (2304.0,), LONGER),
    "found": Arm("scratch", SMALLER, like="sparsify"),
    "scratch-macs": Arm("scratch", SMALLER, base="scratch", macs_of="sparsify"),
    "scratch-macs-grown": Arm("scratch", (2304.0,), base="scratch", macs_of="expand"),
    "found-grown": Arm("scratch", (2304.0,), like="expand"),
    "found-grown-macs": Arm("scratch", (2304.0,), like="expand", base="found-grown", macs_of="expand"),
    "informed": Arm("sparsify", SMALLER, {"start_from": "fisher"}),
    "dense": Arm("dense", (None,)),
    "dense-augmented": Arm("dense", (None,), AUGMENTED),
    "taught": Arm("sparsify", (5320.0,), TAUGHT, teacher="dense-augmented"),
    "scratch-taught": Arm("scratch", (5320.0,), TAUGHT, teacher="dense-augmented"),
}
LABELS = {
    "sparsify": "npn, shrunk from 20-50-800-500",
    "expand": "npn, grown from 3-3-48-3",
    "expand-pair": "npn, grown, new units in pairs",
    "expand-split": "npn, grown, new units by splitting",
    "expand-select": "npn, grown, new units chosen from candidates",
    "expand-decay": "npn, grown, twice the weight decay",
    "expand-longer": "npn, grown, twice the weight decay and the epochs",
    "scratch": "plain nets from scratch, as many epochs",
    "scratch-decay": "plain nets from scratch, twice the weight decay",
    "scratch-longer": "plain nets from scratch, twice the weight decay and the epochs",
    "found": "the widths that shrinking found, from scratch",
    "scratch-macs": "plain nets from scratch, as many training MACs as shrinking",
    "scratch-macs-grown": "plain nets from scratch, as many training MACs as growing",
    "found-grown": "the widths that growing found, from scratch",
    "found-grown-macs": "the widths that growing found, from scratch, as many training MACs as growing",
    "informed": "npn, shrunk, gates started from Fisher scores",
    "dense": "full net, same optimizer",
    "dense-augmented": "full net, augmented images",
    "taught": "npn, shrunk, augmented images and a teacher",
    "scratch-taught": "plain net from scratch, augmented images and a teacher",
}
COMPARED = (
    ("sparsify", "scratch"),
    ("sparsify", "scratch-macs"),
    ("sparsify", "found"),
    ("informed", "sparsify"),
    ("expand", "scratch"),
    ("expand", "scratch-macs-grown"),
    ("expand", "found-grown"),
    ("expand", "found-grown-macs"),
    *STARTS_COMPARED,
    ("expand-decay", "scratch-decay"),
    ("expand-decay", "expand"),
    ("expand-longer", "scratch-longer"),
    ("taught", "scratch-taught"),
)
