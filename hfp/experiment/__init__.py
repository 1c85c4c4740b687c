"""What `train.py` tells its story with: settings, data sets, the training loop, the run folder.

The engine needs none of it.
"""
