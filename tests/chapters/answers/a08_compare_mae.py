"""Answers to chapters/exercises/08_compare_mae.ipynb."""

ANSWERS = {
    "ex1": {
        "wrong": {
            "not normalised": "return gather_tokens(patchify(images, patch), hidden)",
            "over the whole image": """
                x = patchify(images, patch)
                return gather_tokens(F.layer_norm(x, x.shape[1:]), hidden)
            """,
            "over the hidden patches together": """
                x = gather_tokens(patchify(images, patch), hidden)
                return F.layer_norm(x, x.shape[1:])
            """,
            "each channel by itself": """
                x = gather_tokens(patchify(images, patch), hidden).unflatten(2, (images.shape[1], -1))
                return F.layer_norm(x, x.shape[-1:]).flatten(2)
            """,
            "nan on flat patches": """
                x = gather_tokens(patchify(images, patch), hidden)
                return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
            """,
            "all patches": """
                x = patchify(images, patch)
                return F.layer_norm(x, x.shape[-1:])
            """,
        },
        "right": {
            "by hand, with the sample's variance": """
                x = gather_tokens(patchify(images, patch), hidden)
                return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
            """,
            "normalised before it is gathered": """
                x = patchify(images, patch)
                return gather_tokens(F.layer_norm(x, x.shape[-1:]), hidden)
            """,
        },
    },
    "ex2": {
        "wrong": {
            "as it was: the visible ones": """
                mask = torch.ones(predictions.shape[:2]).scatter_(1, hidden, 0.0)
                error = (predictions - targets).square().mean(-1)
                return (error * mask).sum() / mask.sum()
            """,
            "all patches": "return F.mse_loss(predictions, targets)",
            "divided by all": """
                mask = torch.zeros(predictions.shape[:2]).scatter_(1, hidden, 1.0)
                return ((predictions - targets).square().mean(-1) * mask).mean()
            """,
            "a sum over the numbers of a patch": """
                error = (predictions - targets).square().sum(-1)
                return error.gather(1, hidden).mean()
            """,
            "the first image's patches for all": """
                return F.mse_loss(predictions[:, hidden[0]], targets[:, hidden[0]])
            """,
        },
        "right": {
            "the mask turned round": """
                mask = torch.zeros(predictions.shape[:2]).scatter_(1, hidden, 1.0)
                error = (predictions - targets).square().mean(-1)
                return (error * mask).sum() / mask.sum()
            """
        },
    },
    "ex3": {
        "wrong": {
            "all that differs": """
                return {name for name, (ours, theirs) in report.items() if ours != theirs}
            """,
            "equal is fair": 'return {"training time", "evaluation"}',
            "only the evaluation": 'return {"evaluation", "checkpoint"}',
            "more seeds, too": 'return {"training time", "checkpoint", "evaluation", "seeds"}',
        },
    },
    "ex4": {
        "wrong": {
            "the higher mean": 'return "a" if a.mean() > b.mean() else "b"',
            "the best seed": """
                if a.max() == b.max():
                    return "cannot tell"
                return "a" if a.max() > b.max() else "b"
            """,
            "spread of a seed, not of the mean": """
                gap, error = a.mean() - b.mean(), (a.var() + b.var()).sqrt()
                return "cannot tell" if gap.abs() <= 2 * error else "a" if gap > 0 else "b"
            """,
            "variance of a whole population": """
                error = (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)).sqrt()
                gap = a.mean() - b.mean()
                return "cannot tell" if gap.abs() <= 2 * error else "a" if gap > 0 else "b"
            """,
            "one standard error": """
                gap, error = a.mean() - b.mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()
                return "cannot tell" if gap.abs() <= error else "a" if gap > 0 else "b"
            """,
            "only a can win": """
                gap, error = a.mean() - b.mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()
                return "a" if gap > 2 * error else "cannot tell"
            """,
        },
        "right": {
            "compared as squares": """
                gap = a.mean() - b.mean()
                if gap**2 <= 4 * (a.var() / len(a) + b.var() / len(b)):
                    return "cannot tell"
                return "ab"[int(gap < 0)]
            """
        },
    },
}
