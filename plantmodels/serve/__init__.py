"""Images to predictions: numpy, onnxruntime and pillow; never torch, timm, onnx or scipy."""
