"""Frugal: make a published model fit a budget at a known price: prune, quantise, distil."""
