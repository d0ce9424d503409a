"""How throughput grows with threads, processes, GPUs and nodes: measured, fitted, extrapolated, simulated."""
