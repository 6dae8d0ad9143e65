"""Training of weights: the vanilla network, finetuning after the removal, and pseudo bias labels."""
