"""The command line and what it runs: settings, checks, the stages of a run in their order, dry run and demo."""
