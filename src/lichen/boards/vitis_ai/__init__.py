"""The Vitis AI flow: the transforms of a model on the DPU of a board, the rest on its Arm cores."""
