"""Traffic of serving benchmarks: servers, clients in processes of their own, and how latency is counted."""
