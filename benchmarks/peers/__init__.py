"""The peers' tables and the machine's own limit, as the benchmarks of the table run them."""
