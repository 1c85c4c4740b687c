"""Watched runs of the model: which channels of which tensors go together, and who reads them.

On shapes alone, or on numbers where its code looks at values; in evaluation mode, and in training mode if that differs.
"""
