"""From a captured graph to a structure: walk it by the rules of its ops, and turn labels into groups of units."""
