"""From images to predictions, with NumPy, ONNX Runtime and Pillow only. Internal: use `plantmodels.PlantClassifier`."""
