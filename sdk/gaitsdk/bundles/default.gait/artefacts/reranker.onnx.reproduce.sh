#!/bin/sh
# Makes reranker.onnx of this bundle again, from reranker.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was 165863fcb08c7832445e1b2369ed24579c2f1591a46b3794cdc4920489ca7441"
sha256sum "$bundle/artefacts/reranker.onnx"
