#!/bin/sh
# Makes backbone.onnx of this bundle again, from backbone.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was 03de474772ad83c5729acd66a5302d12994df326b784c8dc6a75a6e774fa53d9"
sha256sum "$bundle/artefacts/backbone.onnx"
