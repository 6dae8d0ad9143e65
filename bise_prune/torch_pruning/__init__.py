"""Everything that uses the library torch-pruning: its dependency graph, masks as its importance, its engine."""
