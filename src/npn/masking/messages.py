"""What is said of calls, passes and steps that masks do not allow."""

CLOSURE = (
    "the closure has changed gradients: it called backward() or zero_grad(). It only computes the loss and returns it: "
    "plastic.backward runs the backward pass; set gradients to zero before it"
)
UNUSED = (
    "the loss depends on no weight of the attached model that has a mask; the closure must call that model, not a "
    "copy, nor plastic.export()"
)
NO_SHARD_GRADIENT = (
    "no gradient has arrived at the shards, from which dL/dz follows; leave set_requires_gradient_sync(True) on in "
    "plastic.backward"
)
CHECKPOINTS = (
    'masks="example" does not reach into activation checkpoints, which run their layers again in the backward pass; '
    'use masks="batch", or no checkpoints'
)
CHANGED = (
    "{name} was changed inside {where}, where it is a masked copy; the change is lost. Step optimizers, and "
    "normalise or clip weights in place, after {where}"
)
THREADS = (
    "another thread is inside the model's call while units are closed, with masks in its weights; serve "
    "plastic.export(), call plastic.compact() first, or put `with npn.masked(plastic):` around all threads"
)
CHANGED_SINCE = (
    "the model was resized, moved or loaded between a call and its backward pass, which computes the layers of an "
    "activation checkpoint again; call backward() first"
)
CHANGED_IN_PLACE = (
    "a tensor that the backward pass of the model needs was changed in place, as h in h += 1, after the forward pass "
    "had kept it, so that its gradient would be another one; write h = h + 1"
)
EXPORTED = (
    "a model with gates cannot be traced for export: its masks come and go with each call; export the plain copy that "
    "plastic.export() returns"
)
UNDER_MASKED = "masks are on the weights; do this after plastic.backward or `with npn.masked(plastic):` has ended"
DETACHED = "this handle was detached from its model; npn.attach the model again"
STALE = (
    "this DistributedDataParallel was made before a resize: it no longer averages gradients, and the processes would "
    "come apart. Use model = npn.distributed.wrap(plastic), which wraps anew after each resize, or make a new one "
    "yourself after each compact, grow and load"
)
