"""What is asked of any PyTorch model: its code, its names, its inputs and outputs, and to be run without a trace."""
