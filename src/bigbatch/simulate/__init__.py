"""What the network would cost: seconds per update of each way to train on many workers, from latency, bandwidth and compute."""
