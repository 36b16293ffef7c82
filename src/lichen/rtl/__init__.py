"""Program x folding -> netlist: the accelerator, in Amaranth."""
