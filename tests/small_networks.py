"""Descriptions of networks that are small enough to train in tests."""

RESNET = {
    "architecture": "resnet", "depth": 8, "classes": 4, "image_shape": [8, 8, 1], "shortcut": "zero_pad",
    "mean": [0.3], "std": [0.4], "dtype": "float32",
}  # fmt: skip
