"""CUDA graphs of verify passes: which there are, and which one a pass replays."""
