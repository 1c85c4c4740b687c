"""The network cut, and run again beside the record of the first run: what has to change, or be pinned."""
