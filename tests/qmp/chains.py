#!/usr/bin/env python3
"""Plays the action × phase table in docs/jobs.md for streams and commits, as run.py does for other jobs.

Usage: tests/qmp/chains.py [unittest options]

The program is $SLUICE_BINARY, or else a debug build, which is made first; either way it has test hooks. Ends with 1 if a test
failed.
"""

import os
import sys
import unittest

os.environ.setdefault("SLUICE_FEATURES", "test-hooks")

import run

sys.modules["run"] = run


def load_tests(_loader: unittest.TestLoader, tests: unittest.TestSuite, _pattern) -> unittest.TestSuite:
    import chain_phases

    chain_phases.load(tests)
    return tests


if __name__ == "__main__":
    unittest.main(verbosity=2)
