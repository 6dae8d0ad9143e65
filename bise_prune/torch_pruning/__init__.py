"""All that uses the library Torch-Pruning: dependency groups, masks as an importance criterion, and removal."""
