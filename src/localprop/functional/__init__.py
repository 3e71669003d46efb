"""Pure functions over tensors, one file a family; no modules, no state."""
