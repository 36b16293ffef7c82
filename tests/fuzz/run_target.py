"""Fuzz one target with Atheris: python run_target.py NAME [options of libFuzzer] [CORPUS ...]"""

import sys

import atheris

with atheris.instrument_imports(include=["lichen"]):
    from targets import TARGETS

name = sys.argv.pop(1)
atheris.Setup(sys.argv, TARGETS[name])
atheris.Fuzz()
