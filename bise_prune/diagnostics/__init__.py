"""What else one may want to know of a network: what a linear probe reads of the bias, accuracy against sparsity."""
