#!/bin/sh
# Makes reranker.onnx of this bundle again, from reranker.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was 19b5dcc6771a31af013064a85c4e0fd381f1862f82095aa555d3c7365b0accd6"
sha256sum "$bundle/artefacts/reranker.onnx"
