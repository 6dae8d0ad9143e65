"""Diagnostics: how accurately a linear probe predicts the bias label, and accuracy against sparsity."""
