"""The stages of a run, one file each: identify, search, prune, tune, evaluate, export."""
