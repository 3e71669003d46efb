"""A trained network as files that others can run: ONNX, PyTorch's own export, a folder for the Hugging Face Hub."""
