"""One run of the model on the meta device, watched: which channels of which tensors go together, and who reads them."""
