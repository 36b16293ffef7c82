"""Stand-in of vai_q_pytorch 3.0: see README.md beside."""

__version__ = "3.0.0+stand-in"
