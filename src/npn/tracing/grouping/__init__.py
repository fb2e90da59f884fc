"""From a captured graph to a structure: walk it by the rules of its ops, and turn labels into groups of units.

`walk` goes through the graph, with `multiply_adds` and `fingerprint` of what it computes; `groups` makes the structure,
and `norms` the places of the units that norms are taken over.
"""
