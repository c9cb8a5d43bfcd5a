#!/bin/sh
# Makes reranker.onnx of this bundle again, from reranker.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was 0e09196596874eaaa791a72641d042496965d0c9415dad0130af2f5ce3014441"
sha256sum "$bundle/artefacts/reranker.onnx"
