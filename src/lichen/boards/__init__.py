"""Boards: KV260 and ZCU102. Block designs, packages, and the driver of the cores."""
