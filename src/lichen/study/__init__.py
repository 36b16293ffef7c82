"""The study: which learned codec fits which FPGA, and why."""
