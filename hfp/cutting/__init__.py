"""Channels taken out: of a model, of what its layers compute, of its optimizer."""
