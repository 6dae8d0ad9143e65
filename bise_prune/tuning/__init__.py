"""Training of weights: the vanilla network, finetuning after the removal, pseudo bias labels."""
