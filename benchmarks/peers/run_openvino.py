"""OpenVINO's converter, with weights as they are: MODEL OUT."""

import sys

import openvino

openvino.save_model(openvino.Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)
