"""onnxslim, as its command line runs it."""

import sys

import onnxslim

onnxslim.slim(sys.argv[1], sys.argv[2])
