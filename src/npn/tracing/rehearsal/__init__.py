"""The model at other sizes, on fake tensors: what resizes change in it, and which of them its code does not allow.

`repair` repairs or freezes the groups whose resize fails, by a `rehearsal` of each; `retrace` traces at other sizes,
`attributes` finds the integers that have to follow, and `unused` those that nothing reads; `couplings` finds units that
only change together; `removal_check` looks once more before units go.
"""
