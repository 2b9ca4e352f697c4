"""What the suite costs, beside the published ways of doing the same. `python -m benchmarks` lists the programs."""
