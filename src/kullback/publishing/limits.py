"""Every threshold of publishing a model, with its source."""

__all__ = ["EXPORT_CODES", "EXPORT_ERROR", "EXPORT_EXAMPLES"]

EXPORT_EXAMPLES = 64  # on which ONNX is compared with PyTorch
EXPORT_ERROR = 1e-4  # of the largest value: 800 float32 roundings; 17 kinds of model had 2e-6
EXPORT_CODES = 1e-3  # share of quantised codes that may be rounded the other way
