"""Answers to chapters/exercises/00_start_here.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "only the first 32 columns": "return image[:, :, :32].permute(1, 2, 0)",
            "sizes hard-wired to 20 x 32": "return image.reshape(3, -1).T.reshape(20, 32, 3)",
            "height hard-wired, axes moved per row": "return torch.stack([image[:, r].T for r in range(20)])",
            "another library's array": "return image.permute(1, 2, 0).numpy()",
            "reshape for permute": "return image.reshape(*image.shape[1:], 3)",
            "lying on its side": "return image.transpose(0, 2)",
            "floats above 1": "return image.permute(1, 2, 0).float()",
            "channels left first": "return image",
        },
        "right": {"two transposes": "return image.transpose(0, 1).transpose(1, 2)"},
    },
    "ex2": {
        "wrong": {
            "all by gradient": 'return dict.fromkeys(["context encoder", "target encoder", "predictor"], "gradient")',
            "a frozen teacher": """
                return {"context encoder": "gradient", "target encoder": "nothing", "predictor": "gradient"}
            """,
            "encoders exchanged": """
                return {"context encoder": "average", "target encoder": "gradient", "predictor": "gradient"}
            """,
            "a fixed predictor": """
                return {"context encoder": "gradient", "target encoder": "average", "predictor": "nothing"}
            """,
        },
    },
    "ex3": {
        "wrong": {
            "64 hard-wired": """
                _, M, T = masks.targets.shape
                K = masks.context.shape[1]
                return {"context encoder": K, "target encoder": 64, "predictions": M * T}
            """,
            "M hard-wired to 4": """
                _, M, T = masks.targets.shape
                K = masks.context.shape[1]
                return {"context encoder": K, "target encoder": patches, "predictions": 4 * T}
            """,
            "every patch that is no target is context": """
                _, M, T = masks.targets.shape
                hidden = len(set(masks.targets[0].flatten().tolist()))
                return {"context encoder": patches - hidden, "target encoder": patches, "predictions": M * T}
            """,
            "a blind teacher": """
                _, M, T = masks.targets.shape
                return {"context encoder": masks.context.shape[1], "target encoder": M * T, "predictions": M * T}
            """,
            "the context is all that is not target": """
                _, M, T = masks.targets.shape
                return {"context encoder": patches - M * T, "target encoder": patches, "predictions": M * T}
            """,
            "one block": """
                K, T = masks.context.shape[1], masks.targets.shape[2]
                return {"context encoder": K, "target encoder": patches, "predictions": T}
            """,
            "the context encoder sees all": """
                _, M, T = masks.targets.shape
                return {"context encoder": patches, "target encoder": patches, "predictions": M * T}
            """,
        },
        "right": {
            "counted in the first image": """
                K, MT = len(masks.context[0]), masks.targets[0].numel()
                return {"context encoder": K, "target encoder": patches, "predictions": MT}
            """
        },
    },
}
