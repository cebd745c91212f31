"""Answers to chapters/exercises/02_build_encoder.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "d hard-wired to 5": """
                s = q @ k.transpose(-2, -1)
                d = q.shape[-1]
                return (s / 5 ** 0.5).softmax(-1) @ v
            """,
            "softmax by hand, overflows for large scores": """
                s = q @ k.transpose(-2, -1)
                d = q.shape[-1]
                e = (s / d ** 0.5).exp()
                return e / e.sum(-1, keepdim=True) @ v
            """,
            "scales q in place: the caller's queries change": """
                q /= q.shape[-1] ** 0.5
                return (q @ k.transpose(-2, -1)).softmax(-1) @ v
            """,
            "no gradient": """
                with torch.no_grad():
                    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
            """,
            "scaled by the root of one size": "return (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v",
            "not scaled": "return (q @ k.transpose(-2, -1)).softmax(-1) @ v",
            "softmax over the queries": "return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-2) @ v",
            "scaled by d": "return (q @ k.transpose(-2, -1) / q.shape[-1]).softmax(-1) @ v",
            "weights scaled instead of scores": "return (q @ k.transpose(-2, -1)).softmax(-1) / q.shape[-1] ** 0.5 @ v",
            "no softmax": "return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 @ v",
        },
        "right": {
            "the fused kernel": "return F.scaled_dot_product_attention(q, k, v)",
            "einsum": """
                scores = torch.einsum("band,bamd->banm", q, k) * q.shape[-1] ** -0.5
                return torch.einsum("banm,bamd->band", scores.softmax(-1), v)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "N hard-wired to 6": """
                real = torch.arange(6) < lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
            """,
            "silent bug 1: True for padding": """
                padding = torch.arange(k.shape[2]) >= lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=padding[:, None, None, :])
            """,
            "queries masked instead of keys": """
                real = torch.arange(k.shape[2]) < lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, :, None])
            """,
            "a float mask of ones": """
                padding = torch.arange(k.shape[2]) >= lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=padding[:, None, None, :].to(q.dtype))
            """,
            "values set to zero, weights kept": """
                real = torch.arange(k.shape[2]) < lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v * real[:, None, :, None])
            """,
            "the longest set's mask for all": """
                real = torch.arange(k.shape[2]) < lengths.max()
                return F.scaled_dot_product_attention(q, k, v, attn_mask=real[None, None, None, :])
            """,
        },
        "right": {
            "minus infinity": """
                padding = torch.arange(k.shape[2]) >= lengths[:, None]
                scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
                return scores.masked_fill(padding[:, None, None, :], -torch.inf).softmax(-1) @ v
            """,
            "turned round": """
                padding = torch.arange(k.shape[2]) >= lengths[:, None]
                return F.scaled_dot_product_attention(q, k, v, attn_mask=~padding[:, None, None, :])
            """,
        },
    },
    "ex3": {
        "wrong": {
            "gradient cut through the skip": """
                x = x.detach() + attention(norm1(x))
                return x.detach() + mlp(norm2(x))
            """,
            "no gradient at all": """
                with torch.no_grad():
                    x = x + attention(norm1(x))
                    return x + mlp(norm2(x))
            """,
            "in place: the backward pass misses what was overwritten": """
                x += attention(norm1(x))
                x += mlp(norm2(x))
                return x
            """,
            "norm1 twice": "return (y := x + attention(norm1(x))) + mlp(norm1(y))",
            "post-norm": """
                x = norm1(x + attention(x))
                return norm2(x + mlp(x))
            """,
            "parallel": "return x + attention(norm1(x)) + mlp(norm2(x))",
            "no additions": "return mlp(norm2(attention(norm1(x))))",
            "one norm forgotten": """
                x = x + attention(norm1(x))
                return x + mlp(x)
            """,
            "norms exchanged": """
                x = x + attention(norm2(x))
                return x + mlp(norm1(x))
            """,
        },
        "right": {
            "in one line": """
                return (middle := x + attention(norm1(x))) + mlp(norm2(middle))
            """,
        },
    },
    "ex4": {
        "wrong": {
            "no gradient reaches the patch embedding": """
                with torch.no_grad():
                    return gather_tokens(patch_embed(images) + positions, keep)
            """,
            "as it was": """
                x = gather_tokens(patch_embed(images), keep)
                return x + positions[: keep.shape[1]]
            """,
            "the first image's places for all": "return gather_tokens(patch_embed(images), keep) + positions[keep[0]]",
            "off by one": "return gather_tokens(patch_embed(images), keep) + positions[(keep + 1) % len(positions)]",
            "no positions": "return gather_tokens(patch_embed(images), keep)",
            "indexing every image with every choice": "return (patch_embed(images) + positions)[:, keep]",
        },
        "right": {
            "positions picked with the same index": "return gather_tokens(patch_embed(images), keep) + positions[keep]"
        },
    },
    "ex5": {
        "wrong": {
            "sharp enough for the test's grids only": """
                N = h * w
                n = torch.arange(N)
                k = torch.eye(N)
                t = torch.where(n % w == 0, n, n - 1)
                return 8 * N ** 0.5 * k[t], k
            """,
            "a fixed scale, root of d forgotten, large enough for 28 patches": """
                N = h * w
                n = torch.arange(N)
                k = torch.eye(N)
                t = torch.where(n % w == 0, n, n - 1)
                return 50 * k[t], k
            """,
            "wraps round at the ends of rows": """
                keys = torch.eye(h * w)
                return 20 * (h * w) ** 0.5 * keys.roll(1, 0), keys
            """,
            "too soft": """
                n = torch.arange(h * w)
                keys = torch.eye(h * w)
                return keys[torch.where(n % w == 0, n, n - 1)], keys
            """,
            "queries and keys exchanged": """
                n = torch.arange(h * w)
                keys = torch.eye(h * w)
                return keys, 20 * (h * w) ** 0.5 * keys[torch.where(n % w == 0, n, n - 1)]
            """,
            "above": """
                n = torch.arange(h * w)
                keys = torch.eye(h * w)
                return 20 * (h * w) ** 0.5 * keys[torch.where(n < w, n, n - w)], keys
            """,
            "28 patches, whatever is asked": """
                n = torch.arange(28)
                keys = torch.eye(28)
                return 100 * keys[torch.where(n % 7 == 0, n, n - 1)], keys
            """,
        },
        "right": {
            "rows and columns apart": """
                i, j = torch.arange(h * w) // w, torch.arange(h * w) % w
                row, column = torch.eye(h)[i], torch.eye(w)
                keys = torch.cat([row, column[j]], dim=1)
                return 20 * (h + w) ** 0.5 * torch.cat([row, column[(j - 1).clamp(min=0)]], dim=1), keys
            """
        },
    },
}
