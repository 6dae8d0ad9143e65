"""The command line and what stands behind it: settings, checks, the stages of a run in order, dry run and demo."""
