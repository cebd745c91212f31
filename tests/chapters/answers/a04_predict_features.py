"""Answers to chapters/exercises/04_predict_features.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "adds to the given context in place": """
                context += positions[context_idx]
                return torch.cat([context, (mask_token + positions[target_idx]).flatten(1, 2)], 1)
            """,
            "mask token cut from the gradient: it never learns": """
                seen = context + positions[context_idx]
                asked = mask_token.data + positions[target_idx]
                return torch.cat([seen, asked.flatten(1, 2)], 1)
            """,
            "sizes hard-wired: 12 questions, 8 wide": """
                seen = context + positions[context_idx]
                asked = mask_token.expand(2, 12, 8) + positions[target_idx.reshape(2, 12)]
                return torch.cat([seen, asked], 1)
            """,
            "context features detached": """
                B, K, E = context.shape
                seen, asked = context + positions[context_idx], (mask_token + positions[target_idx]).flatten(1, 2)
                return torch.cat([context.detach() + positions[context_idx], asked], 1)
            """,
            "off by one: a class token's shift": """
                N = len(positions)
                seen = context + positions[(context_idx + 1) % N]
                asked = mask_token + positions[(target_idx + 1) % N]
                return torch.cat([seen, asked.flatten(1, 2)], dim=1)
            """,
            "only the questions off by one": """
                asked = mask_token + positions[(target_idx + 1) % len(positions)]
                return torch.cat([context + positions[context_idx], asked.flatten(1, 2)], dim=1)
            """,
            "questions without places": """
                B, M, T = target_idx.shape
                return torch.cat([context + positions[context_idx], mask_token.expand(B, M * T, -1)], dim=1)
            """,
            "context without places": """
                asked = mask_token + positions[target_idx]
                return torch.cat([context, asked.flatten(1, 2)], dim=1)
            """,
            "numbered in the block instead of in the image": """
                B, M, T = target_idx.shape
                asked = mask_token + positions[:T].expand(B, M, T, -1)
                return torch.cat([context + positions[context_idx], asked.flatten(1, 2)], dim=1)
            """,
            "questions first": """
                asked = (mask_token + positions[target_idx]).flatten(1, 2)
                return torch.cat([asked, context + positions[context_idx]], dim=1)
            """,
        },
        "right": {
            "all places at once": """
                tokens = torch.cat([context, mask_token.expand(len(context), target_idx[0].numel(), -1)], dim=1)
                return tokens + positions[torch.cat([context_idx, target_idx.flatten(1)], dim=1)]
            """
        },
    },
    "ex2": {
        "wrong": {
            "shape of the test hard-wired: 3 images, 2 blocks, 24 wide": """
                with torch.no_grad():
                    x = F.layer_norm(encoder(images), (24,))
                    return torch.stack([x[b][target_idx[b]] for b in range(3)]).reshape(3, 2, -1, 24)
            """,
            "freezes the encoder for good instead of no_grad": """
                encoder.requires_grad_(False)
                x = encoder(images)
                x = F.layer_norm(x, x.shape[-1:])
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "a blind teacher, as it was": """
                with torch.no_grad():
                    x = encoder(images, target_idx.flatten(1))
                    return F.layer_norm(x, x.shape[-1:]).unflatten(1, target_idx.shape[1:])
            """,
            "no layer norm": """
                with torch.no_grad():
                    return gather_tokens(encoder(images), target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "normalised over tokens and features": """
                with torch.no_grad():
                    x = encoder(images)
                    x = F.layer_norm(x, x.shape[1:])
                    return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
            "gradients come back": """
                x = encoder(images)
                x = F.layer_norm(x, x.shape[-1:])
                return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
            """,
        },
        "right": {
            "gathered first: the norm works token by token": """
                with torch.no_grad():
                    x = gather_tokens(encoder(images), target_idx.flatten(1))
                    return F.layer_norm(x, x.shape[-1:]).unflatten(1, target_idx.shape[1:])
            """,
            "detached": """
                x = encoder(images).detach()
                x = F.layer_norm(x, x.shape[-1:])
                return torch.stack([tokens[index] for tokens, index in zip(x, target_idx, strict=True)])
            """,
        },
    },
    "ex3": {
        "wrong": {
            "half as much again for the depth": 'return {"width": 4.0, "depth": 1.5, "grid": 1.0}',
            "a quarter for the positions": 'return {"width": 4.0, "depth": 2.0, "grid": 1.25}',
            "linear in the width": 'return {"width": 2.0, "depth": 2.0, "grid": 1.0}',
            "learned positions": 'return {"width": 4.0, "depth": 2.0, "grid": 4.0}',
            "depth squared": 'return {"width": 4.0, "depth": 4.0, "grid": 1.0}',
            "width cubed": 'return {"width": 8.0, "depth": 2.0, "grid": 1.0}',
        },
        "right": {
            "with the ends counted": 'return {"width": 3.7, "depth": 1.9, "grid": 1}',
            "as rough as is allowed": 'return {"width": 3.3, "depth": 1.65, "grid": 1.15}',
        },
    },
    "ex4": {
        "wrong": {
            "context cut from the gradient": """
                return torch.cat([seen.detach().repeat_interleave(asked.shape[1], 0), asked.flatten(0, 1)], 1)
            """,
            "B hard-wired to 4": """
                M = asked.shape[1]
                seen = seen[:, None].expand(-1, M, -1, -1).reshape(4 * M, 5, 6)
                return torch.cat([seen, asked.reshape(4 * M, 2, 6)], 1)
            """,
            "three blocks, whatever is asked": """
                seen = seen.repeat_interleave(3, dim=0)
                return torch.cat([seen, asked.flatten(0, 1)], dim=1)
            """,
            "as it was": "return torch.cat([seen.repeat(asked.shape[1], 1, 1), asked.flatten(0, 1)], dim=1)",
            "images vary fastest": """
                M = asked.shape[1]
                return torch.cat([seen.repeat(M, 1, 1), asked.transpose(0, 1).flatten(0, 1)], dim=1)
            """,
            "questions first": """
                seen = seen.repeat_interleave(asked.shape[1], dim=0)
                return torch.cat([asked.flatten(0, 1), seen], dim=1)
            """,
            "one context for all": """
                B, M = asked.shape[:2]
                return torch.cat([seen[:1].expand(B * M, -1, -1), asked.flatten(0, 1)], dim=1)
            """,
        },
        "right": {
            "expand": """
                M = asked.shape[1]
                return torch.cat([seen[:, None].expand(-1, M, -1, -1), asked], dim=2).flatten(0, 1)
            """
        },
    },
}
