#!/bin/sh
# Makes backbone.onnx of this bundle again, from backbone.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was cefc3c12a56a99ca6a0a5f33a212b69008c6bf39c24696e83a71e99bab3055d1"
sha256sum "$bundle/artefacts/backbone.onnx"
