"""Backbones of KerasHub that no family of the tests stands for, and why."""

CONVOLUTIONS = "Made of convolutions; `enable_flix` adapts linear layers."
IMAGES = "Neither text nor the images of a classifier: no test stands for it yet."
DIFFUSION = "Generates images by diffusion: no test stands for it yet."

NOT_COVERED = {
    "BLIP2": "Put together of a vision encoder, a Q-Former and an OPT or T5.",
    "PARSeq": "Reads text in images, letter by letter: no test stands for it yet.",
    **dict.fromkeys(
        [
            "BASNet",
            "CSPNet",
            "DeepLabV3",
            "DenseNet",
            "EfficientNet",
            "FeaturePyramid",
            "HGNetV2",
            "MobileNet",
            "MobileNetV5",
            "ResNet",
            "RetinaNet",
            "VGG",
            "Xception",
        ],
        CONVOLUTIONS,
    ),
    **dict.fromkeys(
        [
            "DFine",
            "DepthAnything",
            "MiT",
            "SAM",
            "SAM3PromptableConcept",
            "SegFormer",
            "ViTDet",
        ],
        IMAGES,
    ),
    **dict.fromkeys(["Flux", "StableDiffusion3"], DIFFUSION),
}
