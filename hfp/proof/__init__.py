"""Gating is removing: held against numbers, gradients, and another counter."""
