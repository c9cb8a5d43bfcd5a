#!/bin/sh
# Makes backbone.onnx of this bundle again, from backbone.safetensors.
# Made with gaitsdk 0.1.0, torch 2.13.0+cpu, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1, opset 18.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
gaitsdk export "$bundle" --to onnx
echo "was 12e2008ad4a6c138d10076a797b33104845a557f81c9248a4080c7122cf31878"
sha256sum "$bundle/artefacts/backbone.onnx"
